// What the rotary-embedding kernels are asked to do. Pair j of a head is turned by the angle position * frequency[j]:
//   (re, im) -> (re cos - im sin, im cos + re sin)
// Angles, sines and cosines in fp64. Strides in elements; the last dimension has stride 1.
#pragma once

#include <cstdint>

#include "xformers/kernels/base/dtype.h"

namespace xformers {

struct RopeScaling {
  double theta = 10000, linear_scale = 1;
  bool dynamic = false;  // stretch long wavelengths, as models do whose context was extended
  double old_context_len = 8192, scale_factor = 16, low_freq_factor = 1, high_freq_factor = 32;
};

struct RopeLayout {
  bool adjacents = true;        // pairs (2j, 2j + 1), else (j, j + head_dim / 2)
  bool rotate_in_fp64 = false;  // else in fp32 (fp64 for fp64)
};

struct RopeTensor {
  void* data = nullptr;  // [seqlen, groups, heads, head_dim]
  int64_t seq_stride = 0, group_stride = 0, head_stride = 0;
};

// Packed queries, keys and values of a batch; rotated keys and plain values go to the last slots in use of padded
// caches: query row r of sequence b to slot k_starts[b] + k_lengths[b] - (q_starts[b + 1] - r).
struct RopePaddedParams {
  DType dtype = DType::kFloat32;
  int64_t num_queries = 0, num_keys = 0;  // rows of q, k, v, out_q; rows of the caches
  int64_t groups = 1, heads_q = 1, heads_kv = 1, head_dim = 0;
  RopeTensor q, k, v, out_q, cache_k, cache_v;
  int64_t batch = 0;
  const int32_t* q_starts = nullptr;      // [batch + 1]
  const int32_t* k_starts = nullptr;      // [batch]
  const int32_t* k_lengths = nullptr;     // [batch]
  const int64_t* first_seqpos = nullptr;  // [batch]; position = slot - k_starts[b] + first_seqpos[b]
  const int64_t* seqpos = nullptr;        // [num_queries]; position = seqpos[r]
  RopeScaling scaling;
  RopeLayout layout;
};

// out[o, s, :] = x[o, s, :] turned by position s, or back.
struct RotaryParams {
  DType dtype = DType::kFloat32;
  int64_t outer = 0, seqlen = 0, head_dim = 0;
  const void* x = nullptr;
  void* out = nullptr;
  int64_t x_outer_stride = 0, x_seq_stride = 0, out_outer_stride = 0, out_seq_stride = 0;
  bool inverse = false;
  RopeScaling scaling;
  RopeLayout layout;
};

}  // namespace xformers
