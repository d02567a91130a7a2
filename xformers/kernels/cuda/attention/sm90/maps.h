// Q, K, V and dO as the copy engine sees them: [batch, groups, heads, rows, dims]. Plain C++.
#pragma once

#include <algorithm>

#include "xformers/kernels/cuda/base/tensor_map.h"
#include "xformers/kernels/params/attention.h"

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
inline BoxedTensor rows_of_dout(const AttentionBwdParams& p) {
  return boxed(p.dout, p.shape, p.shape.seqlen_q, p.shape.head_dim_v);
}

}  // namespace xformers::cuda::sm90
