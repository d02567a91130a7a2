// Prompts in, continuations out.
#pragma once

#include <cstdint>
#include <vector>

#include "examples/llama/cache.h"
#include "examples/llama/model.h"
#include "examples/llama/sampling.h"

namespace llama {

using Tokens = std::vector<int64_t>;

struct Phase {
  int64_t tokens = 0;
  double seconds = 0;
};

struct Generated {
  std::vector<Tokens> tokens;  // of each prompt, without the token that ended it
  Phase prefill{}, generation{};
};

// At most `count` tokens behind each prompt, fewer where an end token comes; stops when all texts have ended. Every
// prompt has at least one token.
Generated generate(const Model& model, Cache& cache, const std::vector<Tokens>& prompts, int64_t count,
                   const Sampling& sampling, uint64_t seed);

// Throws examples::Error unless each token of `generated` is the likeliest one behind those before it, by recomputing
// the whole text without a cache. Returns the number of tokens compared.
int64_t verify(const Model& model, const std::vector<Tokens>& prompts, const Generated& generated);

}  // namespace llama
