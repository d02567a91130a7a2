#include "examples/llama/generate.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "examples/common/error.h"
#include "examples/llama/decoder.h"

namespace llama {
namespace {

class Clock {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

bool ends(const Config& config, int64_t token) {
  return std::find(config.end_tokens.begin(), config.end_tokens.end(), token) != config.end_tokens.end();
}

}  // namespace

Generated generate(const Model& model, Cache& cache, const std::vector<Tokens>& prompts, int64_t count,
                   const Sampling& sampling, uint64_t seed) {
  const at::NoGradGuard no_grad;
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  Generated result{.tokens = std::vector<Tokens>(prompts.size())};
  std::vector<char> ended(prompts.size(), 0);

  // Prefill: all prompts as one row, whatever their lengths.
  Tokens packed;
  std::vector<int64_t> counts;
  for (const Tokens& prompt : prompts) {
    packed.insert(packed.end(), prompt.begin(), prompt.end());
    counts.push_back(static_cast<int64_t>(prompt.size()));
  }
  at::Tensor next = at::tensor(packed);
  Phase* phase = &result.prefill;
  for (int64_t i = 0; i < count; ++i) {
    const Clock clock;
    next = choose(decode(model, cache, next, counts), sampling, generator);
    phase->seconds += clock.seconds();
    phase->tokens += next.numel();
    if (i == 0) phase->tokens = static_cast<int64_t>(packed.size());
    phase = &result.generation;
    counts.assign(prompts.size(), 1);  // from here on one token of each; texts that have ended go along unseen
    for (size_t b = 0; b < prompts.size(); ++b) {
      const int64_t token = next.const_data_ptr<int64_t>()[b];
      ended[b] |= static_cast<char>(ends(model.config, token));
      if (!ended[b]) result.tokens[b].push_back(token);
    }
    if (std::all_of(ended.begin(), ended.end(), [](char e) { return e; })) break;
  }
  return result;
}

int64_t verify(const Model& model, const std::vector<Tokens>& prompts, const Generated& generated) {
  const at::NoGradGuard no_grad;
  int64_t compared = 0;
  for (size_t b = 0; b < prompts.size(); ++b) {
    Tokens text = prompts[b];
    text.insert(text.end(), generated.tokens[b].begin(), generated.tokens[b].end());
    const at::Tensor likeliest = recompute(model, at::tensor(text)).argmax(-1).cpu();
    for (size_t i = prompts[b].size(); i < text.size(); ++i) {
      const int64_t expected = likeliest.const_data_ptr<int64_t>()[i - 1];
      if (text[i] != expected) {
        throw examples::Error(
            fmt::format("token {} of text {} is {} with a cache, {} without", i + 1, b + 1, text[i], expected));
      }
      ++compared;
    }
  }
  return compared;
}

}  // namespace llama
