// How the next token is chosen.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

namespace llama {

struct Sampling {
  double temperature = 0.6;  // below 1: safer, above: wilder; 0: always the likeliest token
  double top_p = 0.9;        // of the likeliest tokens, as many as reach this probability together
};

// logits fp32 [texts, vocabulary] -> int64 [texts], on the CPU. A token is kept while the likelier ones together have
// at most top_p ("The Curious Case of Neural Text Degeneration", Holtzman et al., arXiv:1904.09751).
at::Tensor choose(const at::Tensor& logits, const Sampling& sampling, const at::Generator& generator);

}  // namespace llama
