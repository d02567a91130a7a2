// The C++ example of docs/ops/parallel.md, compiled; it needs a process group, which tests/python/parallel has.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "xformers/kernels/base/error.h"

// [example]
#include "xformers/nn/parallel/parallel_linear.h"

at::Tensor two_layers(const at::Tensor& x, const std::string& group) {
  namespace nn = xformers::nn;
  nn::ColumnParallelLinear up(nn::ColumnParallelLinearOptions{64, {256}, group});
  nn::RowParallelLinear down(nn::RowParallelLinearOptions{256, 64, group});
  return down->forward(up->forward(x)[0].relu());
}
// [example]

TEST(ParallelExample, AGroupThatIsNotThereIsAnError) {
  try {
    two_layers(at::ones({2, 64}), "nobody");
    FAIL();
  } catch (const xformers::Error& error) {
    EXPECT_NE(std::string(error.what()).find("process_group is 'nobody', which this process does not have"),
              std::string::npos);
  }
}

// [example]
#include "xformers/ops/context_parallel/context_parallel.h"

at::Tensor causal_over_ranks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t seqlen,
                             int64_t ranks, const std::string& group) {
  const xformers::parallel::ContextProblem problem{
      .seqlen = seqlen, .ranks = ranks, .window_right = 0, .layout = xformers::parallel::Layout::kZigzag};
  return std::get<0>(xformers::ops::context_parallel_attention_with_lse(q, k, v, problem, group));
}
// [example]
