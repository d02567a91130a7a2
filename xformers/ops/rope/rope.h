// Rotary position embeddings.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "xformers/kernels/base/error.h"
#include "xformers/kernels/params/rope.h"

namespace xformers::ops {

struct RopePaddedOptions {
  RopeScaling scaling;
  std::optional<at::Tensor> first_seqpos;  // integers [batch]: added to the positions of a sequence
  std::optional<at::Tensor> seqpos;        // integers [queries]: the positions themselves
  bool adjacents = true;                   // pairs (2j, 2j + 1), else (j, j + head_dim / 2)
  std::string internal_dtype = "";         // "", "f32": rotate in fp32; "f64": in fp64
};

// Turns queries and keys by their positions, and appends keys and values to padded caches, in one pass. xq [1, queries,
// (groups,) heads, head_dim]; xk, xv the same with their own heads, or with one head `expand`ed; cache_k, cache_v [1,
// keys, (groups,) kv heads, head_dim]. q_seqstart int32 [batch + 1], k_seqstart int32 [batch(+ 1)], k_seqlen int32
// [batch] are those of a causal bias with padded keys: query row r of sequence b goes to slot k_seqstart[b] +
// k_seqlen[b] - (q_seqstart[b + 1] - r) and has the position slot - k_seqstart[b]. Returns the turned queries. No
// gradients.
at::Tensor rope_padded(const at::Tensor& xq, const at::Tensor& xk, const at::Tensor& xv, const at::Tensor& cache_k,
                       const at::Tensor& cache_v, const at::Tensor& q_seqstart, const at::Tensor& k_seqstart,
                       const at::Tensor& k_seqlen, const RopePaddedOptions& options = {});

// x [..., seqlen, head_dim], turned by the positions 0 ... seqlen - 1. Differentiable.
at::Tensor rotary(const at::Tensor& x, double theta = 10000.0, bool adjacents = false);

}  // namespace xformers::ops
