#include "examples/microgpt/sampler.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>

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

// Length of the UTF-8 character that starts at `i`, 0 where there is none.
size_t utf8_length(const std::string& s, size_t i) {
  const auto byte = [&](size_t j) { return j < s.size() ? static_cast<uint8_t>(s[j]) : 0; };
  const uint8_t lead = byte(i);
  const size_t length = lead < 0x80                   ? 1
                        : lead >= 0xc2 && lead < 0xe0 ? 2
                        : lead >= 0xe0 && lead < 0xf0 ? 3
                        : lead >= 0xf0 && lead < 0xf5 ? 4
                                                      : 0;
  for (size_t j = 1; j < length; ++j) {
    if ((byte(i + j) & 0xc0) != 0x80) return 0;
  }
  // Overlong forms, surrogates, and beyond the last character.
  const uint8_t second = byte(i + 1);
  if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second >= 0xa0) || (lead == 0xf0 && second < 0x90) ||
      (lead == 0xf4 && second >= 0x90)) {
    return 0;
  }
  return length;
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

std::string printable(const std::string& bytes) {
  std::string out;
  for (size_t i = 0; i < bytes.size();) {
    const size_t length = utf8_length(bytes, i);
    const auto byte = static_cast<uint8_t>(bytes[i]);
    const bool control = (byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7f;
    if (length == 0 || control) {
      out += fmt::format("\\x{:02x}", byte);
      ++i;
    } else {
      out.append(bytes, i, length);
      i += length;
    }
  }
  return out;
}

}  // namespace microgpt
