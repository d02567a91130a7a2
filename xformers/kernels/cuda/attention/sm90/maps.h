// Q, K, V and dO as the copy engine sees them: [batch, groups, heads, rows, dims]. Plain C++.
#pragma once

#include <algorithm>

#include "xformers/kernels/cuda/base/tensor_map.h"
#include "xformers/kernels/params/attention.h"
#include "xformers/kernels/params/sequence.h"

namespace xformers::cuda::sm90 {

// Where all heads have the same rows, there is one of them; a tensor without rows (nobody reads it) has one too.
inline BoxedTensor boxed(const HeadsTensor& t, const AttentionShape& shape, int64_t rows, int64_t dims) {
  const auto entries = [](int64_t count, int64_t stride) { return stride == 0 ? 1 : std::max<int64_t>(count, 1); };
  return {t.data,
          shape.dtype,
          dims,
          {std::max<int64_t>(rows, 1), entries(shape.heads_per_group, t.head_stride),
           entries(shape.num_groups, t.group_stride), entries(shape.batch, t.batch_stride)},
          {t.seq_stride, t.head_stride, t.group_stride, t.batch_stride}};
}
inline BoxedTensor rows_of_q(const AttentionProblem& p) {
  return boxed(p.q, p.shape, p.shape.seqlen_q, p.shape.head_dim);
}
inline BoxedTensor rows_of_k(const AttentionProblem& p) {
  return boxed(p.shape.seqlen_k > 0 ? p.k : p.q, p.shape, p.shape.seqlen_k, p.shape.head_dim);
}
inline BoxedTensor rows_of_v(const AttentionProblem& p) {
  return boxed(p.shape.seqlen_k > 0 ? p.v : p.q, p.shape, p.shape.seqlen_k, p.shape.head_dim_v);
}
// [sequences, groups, heads, queries, keys]; of packed sequences so many as SeqLayout says.
inline BoxedTensor rows_of_bias(const AttentionProblem& p) {
  const ScoreBias& t = p.mods.bias;
  const auto entries = [](int64_t count, int64_t stride) { return stride == 0 ? 1 : std::max<int64_t>(count, 1); };
  const bool packed = p.seq.packed();
  return {t.data,
          p.shape.dtype,
          std::max<int64_t>(packed ? p.seq.most_keys : p.shape.seqlen_k, 1),
          {entries(packed ? p.seq.most_queries : p.shape.seqlen_q, t.q_stride),
           entries(p.shape.heads_per_group, t.head_stride), entries(p.shape.num_groups, t.group_stride),
           entries(num_sequences(p.shape, p.seq), t.batch_stride)},
          {t.q_stride, t.head_stride, t.group_stride, t.batch_stride}};
}
inline BoxedTensor rows_of_dout(const AttentionBwdParams& p) {
  return boxed(p.dout, p.shape, p.shape.seqlen_q, p.shape.head_dim_v);
}

}  // namespace xformers::cuda::sm90
