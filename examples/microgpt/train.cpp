#include "examples/microgpt/train.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "examples/common/atomic_file.h"
#include "examples/common/printable.h"
#include "examples/microgpt/checkpoint.h"
#include "examples/microgpt/error.h"
#include "examples/microgpt/progress.h"
#include "examples/microgpt/sampler.h"
#include "examples/microgpt/schedule.h"
#include "examples/microgpt/stop_signal.h"

namespace microgpt {
namespace {

using Clock = std::chrono::steady_clock;

class Run {
 public:
  explicit Run(const TrainOptions& options)
      : options_(options),
        text_(load_text(options.text)),
        dataset_(text_, options.model.context),
        validation_(dataset_.validation_batch(options.eval_windows)),
        bigram_bits_(bigram_bits_per_byte(Bigram(text_.train), validation_)),
        trainer_(options.model, options.compute, options.weight_decay, options.seed) {}

  int go();

 private:
  void start();  // afresh or from the checkpoint
  void learn();
  void evaluate_if_due();
  void save();
  void report(const std::string& sample);
  double fraction() const;  // of the run that is done
  double now() const { return seconds_before_ + std::chrono::duration<double>(Clock::now() - started_).count(); }

  const TrainOptions& options_;
  Text text_;
  Dataset dataset_;
  Batch validation_;
  double bigram_bits_;
  Trainer trainer_;
  History history_;
  Progress progress_;
  double seconds_before_ = 0;  // spent in earlier sessions
  Clock::time_point started_ = Clock::now();
  double tokens_per_second_ = 0;
};

double Run::fraction() const {
  const double by_steps =
      options_.steps > 0 ? static_cast<double>(history_.step) / static_cast<double>(options_.steps) : 0;
  const double by_time = options_.max_seconds > 0 ? history_.seconds / options_.max_seconds : 0;
  return std::max(by_steps, by_time);
}

void Run::save() {
  if (!options_.checkpoint.empty()) save_checkpoint(options_.checkpoint, trainer_, history_, text_.fingerprint);
}

void Run::start() {
  progress_.message(fmt::format("text: {} files, {:.1f} MB from {}", text_.files,
                                static_cast<double>(text_.train.size() + text_.validation.size()) / 1e6, text_.source));
  progress_.message(
      fmt::format("model: {} layers, dim {}, {} heads, context {}, {:.2f} M parameters; attention: {}, on {} in {}",
                  options_.model.layers, options_.model.dim, options_.model.heads, options_.model.context,
                  static_cast<double>(trainer_.model()->num_parameters()) / 1e6, options_.compute.attention,
                  options_.compute.device, options_.compute.dtype));
  if (options_.compute.sparse24 != "none") {
    progress_.message(fmt::format("feed-forward layers: 2:4 sparse {}", options_.compute.sparse24));
  }
  if (options_.compute.checkpoint_blocks) {
    const Batch batch = dataset_.train_batch(options_.batch, options_.seed, /*step=*/0);
    const auto all = static_cast<double>(trainer_.step_bytes(batch, false));
    const auto less = static_cast<double>(trainer_.step_bytes(batch, true));
    progress_.message(fmt::format("blocks are checkpointed: a step takes {:.1f} MB beside the model, {:.1f} MB less",
                                  less / 1e6, (all - less) / 1e6));
  }
  if (options_.resume) {
    Resumed resumed = restore_checkpoint(options_.checkpoint, trainer_);
    history_ = std::move(resumed.history);
    progress_.message(fmt::format("resumed {} at step {}", options_.checkpoint, history_.step));
    if (resumed.text_fingerprint != text_.fingerprint) {
      progress_.message("note: the text is not the one that this run began with");
    }
  } else if (!options_.checkpoint.empty() && !options_.overwrite &&
             std::filesystem::is_regular_file(options_.checkpoint)) {
    throw Error(
        fmt::format("the checkpoint {} exists.  Fix: pass --resume to go on from it, or --overwrite to start afresh",
                    options_.checkpoint));
  }
  seconds_before_ = history_.seconds;
  started_ = Clock::now();
  if (history_.step == 0) {
    evaluate_if_due();
    save();  // also shows now, not in an hour, that the place can be written to
  }
}

// The validation loss at the start, then whenever another 1 / evals of the run is done.
void Run::evaluate_if_due() {
  const bool first = history_.validation.empty();
  const auto due = static_cast<int64_t>(std::floor(fraction() * static_cast<double>(options_.evals)));
  if (!first && due <= history_.evals_done) return;
  history_.evals_done = std::max(due, history_.evals_done);
  const double bits = trainer_.evaluate(validation_);
  history_.seconds = now();
  history_.validation.push_back({history_.step, history_.seconds, bits});
  progress_.message(fmt::format("step {:5}  {:4.0f} s  validation {:.3f} bits per byte  (bigram {:.3f})", history_.step,
                                history_.seconds, bits, bigram_bits_));
}

void Run::learn() {
  const double tokens = static_cast<double>(options_.batch * options_.model.context);
  while (fraction() < 1 && !stop_signal()) {
    const double before = now();
    const Batch batch = dataset_.train_batch(options_.batch, options_.seed, history_.step);
    const double rate = options_.learning_rate * learning_rate_factor(history_.step, options_.warmup_steps, fraction());
    const double bits = trainer_.step(batch, rate);
    if (!std::isfinite(bits))
      throw Error(fmt::format("the loss is {} at step {}.  Fix: lower --lr", bits, history_.step));
    history_.seconds = now();
    history_.train.push_back({history_.step, history_.seconds, bits});
    ++history_.step;

    const double speed = tokens / (history_.seconds - before);
    tokens_per_second_ = tokens_per_second_ == 0 ? speed : 0.9 * tokens_per_second_ + 0.1 * speed;
    const double done = fraction();
    const double left = options_.max_seconds > 0 && history_.seconds / options_.max_seconds >= done
                            ? options_.max_seconds - history_.seconds
                            : static_cast<double>(options_.steps - history_.step) * tokens / tokens_per_second_;
    progress_.show({done, history_.step, bits, tokens_per_second_, left});
    evaluate_if_due();
    if (history_.step % options_.save_every == 0) save();
  }
  save();
}

void Run::report(const std::string& sample) {
  if (options_.report.empty()) return;
  const ModelOptions& model = options_.model;
  const nlohmann::json json = {{"program", "microgpt train"},
                               {"attention", options_.compute.attention},
                               {"sparse24", options_.compute.sparse24},
                               {"device", options_.compute.device},
                               {"dtype", options_.compute.dtype},
                               {"threads", at::get_num_threads()},
                               {"model",
                                {{"layers", model.layers},
                                 {"dim", model.dim},
                                 {"heads", model.heads},
                                 {"context", model.context},
                                 {"parameters", trainer_.model()->num_parameters()}}},
                               {"text",
                                {{"source", text_.source},
                                 {"files", text_.files},
                                 {"train_bytes", text_.train.size()},
                                 {"validation_bytes", text_.validation.size()},
                                 {"validation_bytes_used", validation_.next.numel()}}},
                               {"batch", options_.batch},
                               {"steps", history_.step},
                               {"seconds", history_.seconds},
                               {"tokens_per_second", tokens_per_second_},
                               {"train", history_.train},
                               {"validation", history_.validation},
                               {"validation_bits_per_byte", history_.validation.back().bits_per_byte},
                               {"bigram_bits_per_byte", bigram_bits_},
                               {"sample", examples::printable(sample)}};
  examples::write_file_atomically(options_.report,
                                  json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

int Run::go() {
  start();
  learn();
  const int signal = stop_signal();
  progress_.message(
      fmt::format("{} after {} steps, {:.0f} s, {:.1f} M bytes of text: validation {:.3f} bits per byte, bigram {:.3f}",
                  signal ? "stopped" : "trained", history_.step, history_.seconds,
                  static_cast<double>(history_.step * options_.batch * options_.model.context) / 1e6,
                  history_.validation.back().bits_per_byte, bigram_bits_));
  if (signal && !options_.checkpoint.empty()) {
    progress_.message(fmt::format("saved {}; go on with --resume", options_.checkpoint));
  }
  std::string sampled;
  if (!signal && options_.sample.bytes > 0) {
    sampled = sample(*trainer_.model(), options_.compute, options_.sample);
    progress_.message(fmt::format("sample:\n{}", examples::printable(sampled)));
  }
  report(sampled);
  return signal ? 128 + signal : 0;
}

}  // namespace

int train(const TrainOptions& options) {
  catch_stop_signals();
  return Run(options).go();
}

int write_sample(const TrainOptions& options) {
  const auto model = load_model(options.checkpoint, options.compute);
  fmt::print("{}\n", examples::printable(sample(*model, options.compute, options.sample)));
  return 0;
}

}  // namespace microgpt
