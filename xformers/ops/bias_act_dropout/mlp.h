// The feed-forward layer: dropout(dropout(activation(x w1^T + b1)) w2^T + b2).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "xformers/kernels/base/error.h"
#include "xformers/kernels/params/bias_act_dropout.h"

namespace xformers::ops {

// x [..., in], w1 [hidden, in], b1 [hidden], w2 [out, hidden], b2 [out]: [..., out]. Bias, activation and dropout of a
// layer are one pass. For backward it keeps x, x w1^T and the random state of dropout: what comes between the products
// is computed again. Under autocast in its dtype. From "Attention Is All You Need" (Vaswani et al., arXiv:1706.03762,
// section 3.3). Differentiable once.
at::Tensor mlp(const at::Tensor& x, const at::Tensor& w1, const std::optional<at::Tensor>& b1, const at::Tensor& w2,
               const std::optional<at::Tensor>& b2, Activation activation = Activation::kNone, double p = 0);

}  // namespace xformers::ops
