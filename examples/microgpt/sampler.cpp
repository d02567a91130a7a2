#include "examples/microgpt/sampler.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <vector>

#include "examples/microgpt/autocast.h"

namespace microgpt {
namespace {

// logits [256] -> one byte.
int64_t choose(const at::Tensor& logits, const SampleOptions& options, const at::Generator& generator) {
  if (options.temperature == 0) return logits.argmax().item<int64_t>();
  const auto [best, bytes] = logits.topk(options.top_k);  // sorted
  const at::Tensor chance = at::softmax(best / options.temperature, -1);
  return bytes[at::multinomial(chance, 1, false, generator).item<int64_t>()].item<int64_t>();
}

}  // namespace

std::string sample(Gpt& model, const ComputeOptions& compute, const SampleOptions& options) {
  at::NoGradGuard no_grad;
  model.eval();
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(options.seed);
  std::string text = options.prompt.empty() ? "\n" : options.prompt;
  std::vector<int64_t> tokens;
  for (char c : text) tokens.push_back(static_cast<uint8_t>(c));
  for (int64_t i = 0; i < options.bytes; ++i) {
    const int64_t seen = std::min<int64_t>(static_cast<int64_t>(tokens.size()), model.options().context);
    const at::Tensor window =
        at::from_blob(tokens.data() + tokens.size() - seen, {1, seen}, at::kLong).to(device_of(compute));
    const Autocast autocast(compute);
    const at::Tensor logits = model.forward(window)[0][seen - 1].to(at::kCPU, at::kFloat);
    tokens.push_back(choose(logits, options, generator));
    text.push_back(static_cast<char>(tokens.back()));
  }
  return text;
}

}  // namespace microgpt
