#include "examples/llama/sampling.h"

#include <ATen/ops/multinomial.h>

namespace llama {

at::Tensor choose(const at::Tensor& logits, const Sampling& sampling, const at::Generator& generator) {
  if (sampling.temperature == 0) return logits.argmax(-1).cpu();
  // Tokens are drawn on the CPU: the same seed gives the same text on every device, up to rounding.
  const auto [chance, tokens] = (logits.cpu() / sampling.temperature).softmax(-1).sort(-1, /*descending=*/true);
  const at::Tensor likelier = chance.cumsum(-1) - chance;
  const at::Tensor kept = chance.masked_fill(likelier > sampling.top_p, 0);
  return tokens.gather(-1, at::multinomial(kept, 1, false, generator)).squeeze(-1);
}

}  // namespace llama
