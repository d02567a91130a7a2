// The forward pass of a decoder: per layer h = x + attention(norm(x)), then h + feed_forward(norm(h)).
#pragma once

#include <ATen/core/Tensor.h>

#include "examples/llama/cache.h"
#include "examples/llama/model.h"

namespace llama {

// tokens int64 [sum of counts], on the CPU: counts[b] >= 1 new tokens of text b, one text after the other; prompts of
// any lengths at first, then one token of each. Appends their keys and values to the cache. Returns what follows the
// last token of each text: logits, fp32 [texts, vocabulary].
at::Tensor decode(const Model& model, Cache& cache, const at::Tensor& tokens, at::IntArrayRef counts);

// The same without a cache: one text from its beginning, tokens int64 [seqlen]. Logits behind every token, fp32
// [seqlen, vocabulary].
at::Tensor recompute(const Model& model, const at::Tensor& tokens);

}  // namespace llama
