// The operators around attention through their C++ functions. Accuracy, shapes and errors in depth: tests/python.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "xformers/ops/indexing/indexing.h"
#include "xformers/ops/norm/norm.h"
#include "xformers/ops/rope/rope.h"
#include "xformers/ops/swiglu/swiglu.h"
#include "xformers/ops/tiled_matmul/tiled_matmul.h"

namespace xformers::ops {
namespace {

at::Tensor random(at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble); }

TEST(BlockOperators, Norms) {
  const at::Tensor x = random({3, 10}).requires_grad_(), weight = random({10}).requires_grad_(), bias = random({10});
  const at::Tensor expected = x / (x.square().mean(-1, true) + 1e-6).sqrt() * weight;
  EXPECT_TRUE(at::allclose(rms_norm(x, weight), expected));
  rms_norm(x, weight).sum().backward();
  const at::Tensor dx = x.grad().clone(), dweight = weight.grad().clone();
  x.mutable_grad() = weight.mutable_grad() = at::Tensor();
  expected.sum().backward();
  EXPECT_TRUE(at::allclose(x.grad(), dx) && at::allclose(weight.grad(), dweight));
  EXPECT_TRUE(at::allclose(layer_norm(x, weight, bias, 1e-5), at::layer_norm(x, {10}, weight, bias)));

  const at::NoGradGuard no_grad;
  at::Tensor sum = x.clone();
  const at::Tensor y = random({3, 10});
  EXPECT_TRUE(at::allclose(rms_norm_add(sum, y, weight), rms_norm(x + y, weight)));
  EXPECT_TRUE(at::equal(sum, x + y));
  EXPECT_THROW(rms_norm(x.t(), weight), Error);
}

TEST(BlockOperators, Indexing) {
  const at::Tensor x = random({4, 2, 3}), source = random({2, 2, 3}), scaling = random({3});
  const at::Tensor index = at::tensor({3, 0}, at::kLong);
  const at::Tensor expected = x.index_add(0, index, source * scaling, 0.5);
  at::Tensor changed = x.clone();
  EXPECT_TRUE(scaled_index_add(changed, index, source, scaling, 0.5).is_same(changed));
  EXPECT_TRUE(at::allclose(changed, expected));
  const at::Tensor flat = x.flatten(1);
  EXPECT_TRUE(at::equal(index_select_cat({flat}, {index}), flat.index_select(0, index).flatten()));
  EXPECT_THROW(index_select_cat({flat}, {index + 2}), Error);
  EXPECT_THROW(index_select_cat({}, {}), Error);
}

TEST(BlockOperators, Rope) {
  const at::Tensor q = random({1, 5, 2, 8}), k = random({1, 5, 1, 8}), v = random({1, 5, 1, 8});
  at::Tensor cache_k = at::zeros({1, 7, 1, 8}, at::kDouble), cache_v = cache_k.clone();
  const auto offsets = [](std::vector<int> values) { return at::tensor(values, at::kInt); };
  RopePaddedOptions options;
  options.adjacents = false;
  const at::Tensor out =
      rope_padded(q, k, v, cache_k, cache_v, offsets({0, 5}), offsets({0, 7}), offsets({5}), options);
  EXPECT_TRUE(at::allclose(out.transpose(1, 2), rotary(q.transpose(1, 2))));
  EXPECT_TRUE(at::allclose(cache_k.narrow(1, 0, 5).transpose(1, 2), rotary(k.transpose(1, 2))));
  EXPECT_TRUE(at::equal(cache_v.narrow(1, 0, 5), v) &&
              at::equal(cache_v.narrow(1, 5, 2), at::zeros_like(v).narrow(1, 0, 2)));
}

TEST(BlockOperators, Swiglu) {
  const at::Tensor x = random({2, 3, 6}), w1w2 = random({2, 8, 6}), b1b2 = random({2, 8}), w3 = random({4, 8}),
                   b3 = random({4});
  const auto half = [](const at::Tensor& t, int64_t i) { return t.select(0, i); };
  const at::Tensor hidden =
      at::silu(at::linear(x, half(w1w2, 0), half(b1b2, 0))) * at::linear(x, half(w1w2, 1), half(b1b2, 1));
  const at::Tensor expected = at::linear(hidden, w3, b3);
  EXPECT_TRUE(at::allclose(swiglu_packed(x, w1w2, b1b2, w3, b3), expected));
  EXPECT_TRUE(at::allclose(swiglu(x, half(w1w2, 0), half(b1b2, 0), half(w1w2, 1), half(b1b2, 1), w3, b3), expected));
  EXPECT_TRUE(
      at::allclose(swiglu(x, half(w1w2, 0).clone(), half(b1b2, 0), half(w1w2, 1), half(b1b2, 1), w3, b3), expected));
  EXPECT_THROW(swiglu_packed(x, w1w2.select(0, 0), b1b2, w3, b3), Error);
}

TEST(BlockOperators, TiledMatmul) {
  const at::Tensor a = random({5, 7}), b = random({7, 6});
  const TileGrid out = tiled_matmul({{a.narrow(1, 0, 3), a.narrow(1, 3, 4)}},
                                    {{b.narrow(0, 0, 3).narrow(1, 0, 2), b.narrow(0, 0, 3).narrow(1, 2, 4)},
                                     {b.narrow(0, 3, 4).narrow(1, 0, 2), b.narrow(0, 3, 4).narrow(1, 2, 4)}});
  EXPECT_TRUE(at::allclose(at::cat({out[0][0], out[0][1]}, 1), a.mm(b)));
  EXPECT_THROW(tiled_matmul({{a}}, {{a}}), Error);
}

}  // namespace
}  // namespace xformers::ops
