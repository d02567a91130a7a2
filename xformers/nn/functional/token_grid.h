// Mechanisms that see the sequence as a square grid of tokens, row by row. Tokens [batch, seqlen, dim] are an image in
// channels-last order, so nothing is transposed.
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::nn::functional {

// "MetaFormer is actually what you need for vision" (Yu et al., arXiv:2111.11418): the mean of a window of tokens,
// pool_size x pool_size (what lies outside of the grid does not count), minus the token.
struct PoolingArgs {
  static constexpr const char* kName = "pooling_attention";
  using Result = at::Tensor;
  at::Tensor x;                       // [batch, seqlen, dim]
  int64_t pool_size = 3, stride = 1;  // a stride other than 1 leaves fewer tokens than there are: an error
  int64_t padding = -1;               // -1: pool_size / 2

  static constexpr auto arguments() {
    using A = PoolingArgs;
    return std::tuple{ops::arg("x", &A::x), ops::arg("pool_size", &A::pool_size), ops::arg("stride", &A::stride),
                      ops::arg("padding", &A::padding)};
  }
};
at::Tensor pooling_attention(const PoolingArgs& args);

// "Visual Attention Network" (Guo et al., arXiv:2202.09741):
//   x + conv1x1(u * conv1x1(depthwise7x7, dilation 3 (depthwise5x5 (u)))),    u = gelu(conv1x1 x)
struct VisualArgs {
  static constexpr const char* kName = "visual_attention";
  using Result = at::Tensor;
  at::Tensor x;                         // [batch, seqlen, dim]
  at::Tensor weight_in, bias_in;        // [dim, dim, 1, 1], [dim]
  at::Tensor weight_local, bias_local;  // depthwise [dim, 1, 5, 5], [dim]
  at::Tensor weight_wide, bias_wide;    // depthwise [dim, 1, 7, 7], [dim]
  at::Tensor weight_mix, bias_mix;      // [dim, dim, 1, 1], [dim]
  at::Tensor weight_out, bias_out;      // [dim, dim, 1, 1], [dim]

  static constexpr auto arguments() {
    using A = VisualArgs;
    return std::tuple{ops::arg("x", &A::x),
                      ops::arg("weight_in", &A::weight_in),
                      ops::arg("bias_in", &A::bias_in),
                      ops::arg("weight_local", &A::weight_local),
                      ops::arg("bias_local", &A::bias_local),
                      ops::arg("weight_wide", &A::weight_wide),
                      ops::arg("bias_wide", &A::bias_wide),
                      ops::arg("weight_mix", &A::weight_mix),
                      ops::arg("bias_mix", &A::bias_mix),
                      ops::arg("weight_out", &A::weight_out),
                      ops::arg("bias_out", &A::bias_out)};
  }
};
at::Tensor visual_attention(const VisualArgs& args);

}  // namespace xformers::nn::functional
