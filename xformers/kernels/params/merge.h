// Merging attention over disjoint sets of keys into attention over their union; per query row and head:
//
//   lse = ln sum_i exp(lse_i),  W_i = exp(lse_i - lse),  out = sum_i W_i out_i
//   backward: dout_i = W_i dout,  dlse_i = W_i (dlse + <out_i, dout> - sum_k W_k <out_k, dout>)
//
// A part whose lse is -inf saw no key: it has weight 0 and gradient 0, and its out is not read. Where all are: out 0,
// lse -inf.
#pragma once

#include "xformers/kernels/params/attention.h"

namespace xformers {

struct MergeShape {
  DType dtype = DType::kFloat32;      // of the parts
  DType out_dtype = DType::kFloat32;  // of out and dout
  DType lse_dtype = DType::kFloat32;  // fp32 or fp64, of every lse
  int64_t num_parts = 0;
  int64_t batch = 0, seqlen = 0, num_groups = 1, heads_per_group = 1, head_dim = 0;

  constexpr int64_t num_rows() const { return batch * seqlen * num_groups * heads_per_group; }
};

struct MergePart {
  HeadsTensor out, lse;  // an lse has an element where out has a row
};

struct MergeFwdParams {
  MergeShape shape;
  const MergePart* parts = nullptr;  // [num_parts]
  HeadsTensor out;
  HeadsTensor lse;  // data null: not wanted
};

struct MergeBwdParams {
  MergeShape shape;
  const MergePart* parts = nullptr;  // [num_parts]
  HeadsTensor dout;
  HeadsTensor dlse;                  // gradient that reaches lse; data null: none
  const MergePart* grads = nullptr;  // [num_parts]; every element is written
};

}  // namespace xformers
