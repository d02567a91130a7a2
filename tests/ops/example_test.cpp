// The C++ examples of docs/ops/attention.md and docs/how-to/paged-cache.md, which show the lines between the markers.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

// [example]
#include "xformers/ops/attention/attention.h"

at::Tensor attend() {
  namespace xops = xformers::ops;
  at::Tensor query = at::randn({2, 1024, 8, 64}).requires_grad_();  // [batch, seqlen, heads, head_dim]
  at::Tensor key = at::randn({2, 1024, 8, 64});
  at::Tensor value = at::randn({2, 1024, 8, 64});

  at::Tensor out = xops::memory_efficient_attention(query, key, value, xops::LowerTriangularMask{});
  out.sum().backward();
  return query.grad();
}
// [example]

TEST(Example, RunsAsDocumented) {
  const at::Tensor grad = attend();
  EXPECT_EQ(grad.sizes(), at::IntArrayRef({2, 1024, 8, 64}));
  EXPECT_TRUE(at::isfinite(grad).all().item<bool>());
}

// [example]
#include "xformers/ops/attention/attention.h"

// One query per text: query [1, texts, heads, head_dim], lengths as the cache has them now, this token's key included.
at::Tensor decode_step(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values,
                       at::IntArrayRef lengths, const at::Tensor& block_tables, int64_t page_size) {
  namespace xops = xformers::ops;
  const std::vector<int64_t> one_each(lengths.size(), 1);
  const auto mask = xops::PagedBlockDiagonalPaddedKeysMask::from_seqlens(one_each, lengths, block_tables, page_size);
  return xops::memory_efficient_attention(query, keys, values, mask);
}
// [example]

TEST(PagedExample, RunsAsDocumented) {
  const at::Tensor keys = at::randn({1, 8 * 16, 4, 32}), values = at::randn({1, 8 * 16, 4, 32});
  const at::Tensor tables = at::tensor({5, 2}, at::kInt).view({1, 2}), query = at::randn({1, 1, 4, 32});
  const at::Tensor out = decode_step(query, keys, values, {20}, tables, 16);
  const auto rows = [](const at::Tensor& cache) {  // the 20 keys of the text, [4, 20, 32]
    return at::cat({cache[0].slice(0, 80, 96), cache[0].slice(0, 32, 36)}).transpose(0, 1);
  };
  const at::Tensor scores = at::matmul(query[0].transpose(0, 1), rows(keys).transpose(1, 2)) / std::sqrt(32.0);
  EXPECT_TRUE(at::allclose(out[0][0], at::matmul(scores.softmax(-1), rows(values)).squeeze(1), 1e-4, 1e-5));
}
