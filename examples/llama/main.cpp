// llama: writes text with a decoder and a cache of keys and values. See docs/examples/llama.md.
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <new>
#include <nlohmann/json.hpp>
#include <string>

#include "examples/common/atomic_file.h"
#include "examples/common/error.h"
#include "examples/common/printable.h"
#include "examples/llama/generate.h"
#include "examples/llama/load.h"
#include "examples/llama/options.h"
#include "examples/microgpt/device.h"
#include "examples/microgpt/wait_policy.h"

namespace llama {
namespace {

using examples::Error;

// Text and numbers, in this order, as tokens of this model.
std::vector<Tokens> prompts_of(const Options& options, const Config& config) {
  std::vector<Tokens> prompts;
  for (const std::string& text : options.prompts) {
    if (!config.bytes) {
      throw Error(
          fmt::format("--prompt '{}': this model's tokens are no bytes, and no tokenizer is here.  Fix: pass "
                      "--prompt-tokens",
                      text));
    }
    Tokens& tokens = prompts.emplace_back();
    for (char c : text) tokens.push_back(static_cast<uint8_t>(c));
  }
  prompts.insert(prompts.end(), options.prompt_tokens.begin(), options.prompt_tokens.end());
  if (prompts.empty() && config.bytes) prompts.push_back({'\n'});
  if (prompts.empty()) throw Error("no prompt.  Fix: pass --prompt-tokens");
  for (size_t b = 0; b < prompts.size(); ++b) {
    if (prompts[b].empty()) throw Error(fmt::format("prompt {} is empty, expected a token at least", b + 1));
    for (int64_t token : prompts[b]) {
      if (token >= config.vocabulary) {
        throw Error(
            fmt::format("prompt {} has the token {}, the model knows 0 to {}", b + 1, token, config.vocabulary - 1));
      }
    }
  }
  return prompts;
}

std::string shown(const Config& config, const Tokens& tokens) {
  if (!config.bytes) return fmt::format("{}", fmt::join(tokens, ","));
  return examples::printable(std::string(tokens.begin(), tokens.end()));
}

std::string rate(const Phase& phase) {
  return fmt::format("{} tokens in {:.3f} s, {:.0f} tokens/s", phase.tokens, phase.seconds,
                     static_cast<double>(phase.tokens) / std::max(phase.seconds, 1e-9));
}

int run(const Options& options) {
  if (options.threads > 0) at::set_num_threads(options.threads);
  microgpt::ComputeOptions compute;
  compute.device = options.device;
  compute.dtype = options.dtype;
  microgpt::choose_device(compute);
  const at::ScalarType dtype = compute.dtype == "float32"    ? at::kFloat
                               : compute.dtype == "bfloat16" ? at::kBFloat16
                                                             : at::kHalf;
  const Model model = load_model(options.model, dtype, microgpt::device_of(compute));
  const Config& config = model.config;
  const std::vector<Tokens> prompts = prompts_of(options, config);
  size_t longest = 0;
  for (const Tokens& prompt : prompts) longest = std::max(longest, prompt.size());
  const int64_t capacity = options.capacity > 0 ? options.capacity : static_cast<int64_t>(longest) + options.tokens;
  if (static_cast<int64_t>(longest) + options.tokens - 1 > capacity) {  // the last token needs no place
    throw Error(
        fmt::format("the longest prompt has {} tokens and --tokens asks for {} more, --capacity is {}.  Fix: a "
                    "larger --capacity or fewer tokens",
                    longest, options.tokens, capacity));
  }
  if (static_cast<int64_t>(longest) + options.tokens > config.context) {
    fmt::print(stderr, "note: the model was trained on {} tokens, the texts may reach {}\n", config.context,
               static_cast<int64_t>(longest) + options.tokens);
  }
  const auto cache = make_cache(model, static_cast<int64_t>(prompts.size()), capacity, options.page_size);
  fmt::print("model: {} layers, dim {}, {} heads over {}, {} parameters, {}; cache: {}, {:.1f} MB\n", config.layers,
             config.dim, config.heads, config.kv_heads, num_parameters(model), compute.dtype,
             options.page_size == 0 ? "padded" : fmt::format("pages of {}", options.page_size),
             static_cast<double>(cache->bytes()) / 1e6);

  const Generated generated = generate(model, *cache, prompts, options.tokens, options.sampling, options.seed);
  for (size_t b = 0; b < prompts.size(); ++b) {
    fmt::print("--- text {}\n{}{}{}\n", b + 1, shown(config, prompts[b]), config.bytes ? "" : " -> ",
               shown(config, generated.tokens[b]));
  }
  fmt::print("---\nprefill: {}\ngeneration: {}\n", rate(generated.prefill), rate(generated.generation));
  int64_t verified = 0;
  if (options.verify) {
    verified = verify(model, prompts, generated);
    fmt::print("verified: {} tokens are those of computing the texts without a cache\n", verified);
  }
  if (!options.report.empty()) {
    const auto phase = [](const Phase& p) { return nlohmann::json{{"tokens", p.tokens}, {"seconds", p.seconds}}; };
    const nlohmann::json report = {{"prompts", prompts},
                                   {"tokens", generated.tokens},
                                   {"prefill", phase(generated.prefill)},
                                   {"verified", verified},
                                   {"generation", phase(generated.generation)},
                                   {"dtype", compute.dtype},
                                   {"device", compute.device}};
    examples::write_file_atomically(options.report, report.dump(1) + "\n");
  }
  return 0;
}

int fail(const std::string& what) {
  std::fprintf(stderr, "llama: %s\n", what.c_str());
  return 1;
}

}  // namespace
}  // namespace llama

int main(int argc, char** argv) {
  microgpt::let_waiting_threads_sleep(argv);
  try {
    const llama::ParsedOptions parsed = llama::parse_options(argc, argv);
    return parsed.run ? llama::run(parsed.options) : parsed.exit_code;
  } catch (const c10::Error& error) {
    return llama::fail(error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return llama::fail("out of memory.  Fix: a smaller model, or a smaller --capacity");
  } catch (const std::exception& error) {
    return llama::fail(error.what());
  }
}
