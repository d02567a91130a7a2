// Taking a packed projection apart and its gradients back together, in C++.
#include "xformers/ops/common/stack.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "xformers/ops/attention/attention.h"

namespace xformers::ops {
namespace {

TEST(Stack, AttentionOnPackedProjectionCopiesNoGradient) {
  const at::Tensor packed = at::randn({2, 5, 3, 2, 8}, at::kDouble).requires_grad_();
  const std::vector<at::Tensor> parts = ops::unbind(packed, 2);
  const void* storage = nullptr;
  for (const at::Tensor& part : parts) {
    part.register_hook([&](const at::Tensor& grad) { storage = grad.storage().data(); });
  }
  const at::Tensor out = memory_efficient_attention(parts[0], parts[1], parts[2]);
  const at::Tensor grad = torch::autograd::grad({out.square().sum()}, {packed})[0];
  EXPECT_EQ(grad.storage().data(), storage);
  EXPECT_EQ(grad.strides(), packed.strides());
}

TEST(Stack, StridesOfWhatFormsAStack) {
  const at::Tensor x = at::randn({3, 4, 5});
  EXPECT_EQ(get_stack_strides(x.unbind(1), 1), at::DimVector({20, 5, 1}));
  EXPECT_TRUE(at::equal(stack_or_none(x.unbind(1), 1), x));
  EXPECT_TRUE(get_stack_strides({x, x.clone()}, 0).empty());
  EXPECT_FALSE(stack_or_none({x, x.clone()}, 0).defined());
}

}  // namespace
}  // namespace xformers::ops
