// The C++ examples of docs/ops/sparse-tensors.md, each between two markers.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

// [example]
#include "xformers/ops/csr/csr.h"

at::Tensor sparse_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& mask) {
  namespace ops = xformers::ops;
  const auto [values, row_offsets, column_indices] = ops::csr_from_dense(mask);
  const ops::CsrTensors pattern{row_offsets, column_indices};
  return ops::spmm(ops::sparse_softmax(ops::sddmm(q, k, pattern), pattern), v, pattern);
}
// [example]

TEST(SparseExamples, RunAsDocumented) {
  const at::Tensor q = at::randn({2, 7, 4}), k = at::randn({2, 9, 4}), v = at::randn({2, 9, 3});
  const at::Tensor mask = at::rand({1, 7, 9}) < 0.5;
  const at::Tensor scores = q.matmul(k.mT()).masked_fill(mask.logical_not(), -INFINITY);
  const at::Tensor expected = scores.softmax(-1).nan_to_num(0).matmul(v);
  EXPECT_TRUE(at::allclose(sparse_attention(q, k, v, mask), expected, 1e-5, 1e-6));
}
