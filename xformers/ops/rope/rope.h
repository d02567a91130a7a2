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
at::Tensor rotary(const at::Tensor& x, const RopeScaling& scaling, bool adjacents = false);

// How the rotations of a model are stretched so that it reads longer texts than those it was trained on.
struct RotaryScaling {
  // "none"
  // "linear"  frequencies / factor ("Extending Context Window of Large Language Models via Positional Interpolation",
  //           Chen et al., arXiv:2306.15595)
  // "ntk"     theta factor^(head_dim / (head_dim - 2)) (NTK-aware interpolation: YaRN, below, section 3.1)
  // "yarn"    pairs that turn less than low_freq_factor times over original_seq_len: frequency / factor; more than
  //           high_freq_factor times: as they are; between: interpolated; and results times 0.1 ln(factor) + 1
  //           ("YaRN", Peng et al., arXiv:2309.00071, equations 17 to 22)
  // "llama3"  as yarn, without the last ("The Llama 3 Herd of Models", Dubey et al., arXiv:2407.21783)
  std::string kind = "none";
  double factor = 1;
  double original_seq_len = 8192;
  double low_freq_factor = 1;
  std::optional<double> high_freq_factor;  // 32 for yarn, 4 for llama3
};
// What the kernels are asked for.
RopeScaling to_rope_scaling(int64_t head_dim, double theta, const RotaryScaling& scaling);
double rotary_magnitude(const RotaryScaling& scaling);  // by which results are multiplied

// rotary with a scaling. x [..., seqlen, head_dim].
at::Tensor rotary_embedding(const at::Tensor& x, double theta, const RotaryScaling& scaling);
// Radians per position of each pair: fp64 [head_dim / 2], on the CPU.
at::Tensor rotary_frequencies(int64_t head_dim, double theta, const RotaryScaling& scaling);

}  // namespace xformers::ops
