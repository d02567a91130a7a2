#include "examples/microgpt/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <string>
#include <type_traits>

#include "examples/microgpt/error.h"

namespace microgpt {
namespace {

constexpr double kLargestSeed = 9007199254740992;  // 2^53: ranges are checked as double

// An option with a shown default and a range that only complaints mention.
template <class T>
void number(CLI::App& app, const char* group, const std::string& name, T& value, double least, double most,
            const std::string& help) {
  app.add_option(name, value, help)
      ->capture_default_str()
      ->type_name(std::is_integral_v<T> ? "N" : "X")
      ->check([=](const std::string& text) {
        double given = 0;
        const bool fits = CLI::detail::lexical_cast(text, given) && given >= least && given <= most;
        return fits ? std::string() : fmt::format("is {}, expected a number from {} to {}", text, least, most);
      })
      ->take_last()
      ->group(group);
}

void word(CLI::App& app, const char* group, const std::string& name, std::string& value, const char* type,
          const std::string& help) {
  app.add_option(name, value, help)->capture_default_str()->type_name(type)->take_last()->group(group);
}

void add_text(CLI::App& app, TextOptions& text) {
  app.add_option("--text", text.paths, "Files and folders to learn from (default: Python's standard library)")
      ->type_name("PATH")
      ->group("Text");
  word(app, "Text", "--python", text.python, "PROGRAM", "Whose standard library is the default text");
}

void add_model(CLI::App& app, ModelOptions& model, const char* context_name) {
  const char* group = "Model";
  number(app, group, "--layers", model.layers, 1, 1000, "Blocks of attention and feed-forward");
  number(app, group, "--dim", model.dim, 2, 65536, "Width of the residual stream");
  number(app, group, "--heads", model.heads, 1, 1024, "Attention heads; dim / heads has to be even");
  number(app, group, context_name, model.context, 1, 1 << 24, "Bytes that a prediction may look back on");
}

void add_compute(CLI::App& app, ComputeOptions& compute, bool with_attention) {
  const char* group = "Computation";
  if (with_attention) {
    app.add_option("--attention", compute.attention,
                   "xformers, PyTorch's or one kind of it, the plain formula; the last three: by blocks")
        ->capture_default_str()
        ->type_name("NAME")
        ->check(
            CLI::IsMember({"ours", "sdpa", "flash", "cudnn", "efficient", "vanilla", "bigbird", "longformer", "fixed"}))
        ->group(group);
    number(app, group, "--block", compute.block, 16, 1024, "Positions in a block of bigbird, longformer and fixed");
    app.add_option("--sparse24", compute.sparse24, "What of the feed-forward layers is 2:4 sparse, on the CPU")
        ->capture_default_str()
        ->type_name("NAME")
        ->check(CLI::IsMember({"none", "weights", "activations"}))
        ->take_last()
        ->group(group);
  }
  app.add_option("--device", compute.device, "auto: the GPU where there is one that xformers has kernels for")
      ->capture_default_str()
      ->type_name("NAME")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->take_last()
      ->group(group);
  app.add_option("--dtype", compute.dtype, "bfloat16 is autocast; auto: bfloat16 on a GPU, float32 on the CPU")
      ->capture_default_str()
      ->type_name("NAME")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}))
      ->take_last()
      ->group(group);
  number(app, group, "--threads", compute.threads, 0, 4096, "Threads; 0: one per core");
}

void add_sample(CLI::App& app, SampleOptions& sample, const std::string& prefix) {
  const char* group = "Sample";
  word(app, group, "--prompt", sample.prompt, "TEXT", "Text to go on from");
  number(app, group, "--" + prefix + "bytes", sample.bytes, 0, 1 << 24, "Bytes to write; 0: none");
  number(app, group, "--temperature", sample.temperature, 0, 100,
         "Below 1: safer, above 1: wilder; 0: always the likeliest byte");
  number(app, group, "--top-k", sample.top_k, 1, 256, "Choose among the k likeliest bytes");
  number(app, group, "--" + prefix + "seed", sample.seed, 0, kLargestSeed, "Seed of the choices");
}

void add_train(CLI::App& app, TrainOptions& train) {
  add_text(app, train.text);
  add_model(app, train.model, "--context");
  number(app, "Model", "--dropout", train.model.dropout, 0, 0.99, "Share of attention weights and outputs to drop");
  add_compute(app, train.compute, /*with_attention=*/true);

  app.add_flag("--checkpoint-blocks", train.compute.checkpoint_blocks,
               "Less memory: blocks keep their inputs alone and run again in backward")
      ->group("Computation");

  const char* run = "Run";
  number(app, run, "--max-seconds", train.max_seconds, 0, 1e9,
         "Stop after this time; 0: no limit, 120 without --steps");
  number(app, run, "--steps", train.steps, 0, 1 << 30, "Stop after this many steps; 0: no limit");
  number(app, run, "--batch", train.batch, 1, 1 << 20, "Windows of text in a step");
  number(app, run, "--lr", train.learning_rate, 1e-9, 1e9, "Learning rate at its highest, after the warm-up");
  number(app, run, "--weight-decay", train.weight_decay, 0, 10, "Of the matrices (AdamW)");
  number(app, run, "--warmup", train.warmup_steps, 0, 1 << 30, "Steps in which the learning rate rises");
  number(app, run, "--evals", train.evals, 1, 1 << 20, "Validation measurements, spread over the run");
  number(app, run, "--eval-windows", train.eval_windows, 1, 1 << 20, "Windows of text in a measurement");
  number(app, run, "--seed", train.seed, 0, kLargestSeed, "Seed of initial weights, batches and dropout");

  const char* files = "Files";
  word(app, files, "--checkpoint", train.checkpoint, "FILE", "Where to save the run");
  number(app, files, "--save-every", train.save_every, 1, 1 << 30, "Steps between saves; start and end are saved too");
  auto* resume = app.add_flag("--resume", train.resume, "Go on from the checkpoint")->group(files);
  auto* afresh = app.add_flag("--overwrite", train.overwrite, "Start afresh, although the checkpoint exists");
  afresh->excludes(resume)->group(files);
  word(app, files, "--report", train.report, "FILE", "Where to write curves and sample as JSON");

  add_sample(app, train.sample, "sample-");
}

void add_compare(CLI::App& app, CompareOptions& compare) {
  add_text(app, compare.text);
  add_model(app, compare.model, "--seqlen");
  add_compute(app, compare.compute, /*with_attention=*/false);
  const char* group = "Measurement";
  number(app, group, "--batch", compare.batch, 1, 1 << 20, "Sequences in a step");
  number(app, group, "--steps", compare.steps, 1, 1 << 20, "Timed steps in a process, after an untimed one");
  number(app, group, "--rounds", compare.rounds, 1, 1000, "Processes per attention; they take turns");
  number(app, group, "--seed", compare.seed, 0, kLargestSeed, "Seed of weights and batches");
  word(app, "Files", "--report", compare.report, "FILE", "Where to write the table as JSON");
}

void check_model(const ModelOptions& model) {
  if (model.dim % model.heads != 0 || model.dim / model.heads % 2 != 0) {
    throw Error("--dim " + std::to_string(model.dim) + " over --heads " + std::to_string(model.heads) +
                " is not an even head size.  Fix: make dim a multiple of 2 * heads");
  }
}

void check(Options& options) {
  TrainOptions& train = options.train;
  if (options.command == Options::Command::kTrain) {
    check_model(train.model);
    if (train.checkpoint.empty() && train.resume)
      throw Error("--resume needs the file to go on from.  Fix: pass --checkpoint");
    if (train.steps == 0 && train.max_seconds == 0) train.max_seconds = 120;
  } else if (options.command != Options::Command::kSample) {
    check_model(options.compare.model);
  }
}

}  // namespace

ParsedOptions parse_options(int argc, char** argv) {
  ParsedOptions parsed;
  Options& options = parsed.options;
  CLI::App app(
      "A small GPT that learns to write text, byte by byte, on the CPU or a GPU.\n"
      "Its attention is xformers' memory-efficient attention; PyTorch's and the plain formula are there to compare.\n\n"
      "  microgpt train                                      two minutes on the Python standard library\n"
      "  microgpt train --text book.txt --checkpoint book.ckpt --max-seconds 3600\n"
      "  microgpt train --text book.txt --checkpoint book.ckpt --max-seconds 7200 --resume\n"
      "  microgpt sample --checkpoint book.ckpt --prompt 'It was'\n"
      "  microgpt compare                                    time and memory of several attentions\n",
      "microgpt");
  app.get_formatter()->column_width(36);
  app.require_subcommand(1);
  app.set_help_all_flag("--help-all", "Print the options of all subcommands");
  app.failure_message([](const CLI::App* failed, const CLI::Error& error) {
    return "microgpt: " + std::string(error.what()) + ".  Fix: see " + failed->get_display_name() + " --help\n";
  });

  auto* train = app.add_subcommand("train", "Learn from text, report the loss, write a sample");
  add_train(*train, options.train);

  auto* sample = app.add_subcommand("sample", "Write text with a saved model");
  sample->add_option("--checkpoint", options.train.checkpoint, "Model to write with")->required()->group("Files");
  add_sample(*sample, options.train.sample, "");
  add_compute(*sample, options.train.compute, /*with_attention=*/true);

  auto* compare = app.add_subcommand("compare", "Time per training step and peak memory of several attentions");
  add_compare(*compare, options.compare);

  // One process of `compare`: prints its measurements as JSON.
  auto* measure = app.add_subcommand("measure", "")->group("");
  add_compare(*measure, options.compare);
  measure->add_option("--attention", options.compare.compute.attention)->required();

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    parsed.exit_code = app.exit(error);
    return parsed;
  }
  using Command = Options::Command;
  options.command = *train     ? Command::kTrain
                    : *sample  ? Command::kSample
                    : *compare ? Command::kCompare
                               : Command::kMeasure;
  check(options);
  parsed.run = true;
  return parsed;
}

}  // namespace microgpt
