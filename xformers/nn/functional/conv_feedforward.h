// The feed-forward layer of convolutional mixers, as a function of its parameters; also torch.ops.xformers.<name>.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "xformers/kernels/base/activation.h"

namespace xformers::nn::functional {

// The parameters of its three convolutions, with the shapes that torch.nn.Conv2d gives them.
struct ConvFeedforwardWeights {
  at::Tensor in;                         // [hidden, dim, 1, 1]
  std::optional<at::Tensor> in_bias;     // [hidden]
  at::Tensor depth;                      // [hidden, 1, 3, 3]: a filter per channel
  std::optional<at::Tensor> depth_bias;  // [hidden]
  at::Tensor out;                        // [out, hidden, 1, 1]
  std::optional<at::Tensor> out_bias;    // [out]
};

// x [batch, side^2, dim] -> [batch, side^2, out]: 1x1, depthwise 3x3 (padded by 1), activation, 1x1, dropout. The first
// axis of `depth` runs along the columns of the grid, the second along its rows, as upstream has it. The 1x1
// convolutions are products of token rows, the grid is channels last. gelu is the exact one. From "PVT v2" (Wang et
// al., arXiv:2106.13797).
at::Tensor conv2d_feedforward(const at::Tensor& x, const ConvFeedforwardWeights& weights, Activation activation,
                              double p = 0);

}  // namespace xformers::nn::functional

// Their names outside of this folder.
namespace xformers::nn {
using functional::conv2d_feedforward;
using functional::ConvFeedforwardWeights;
}  // namespace xformers::nn
