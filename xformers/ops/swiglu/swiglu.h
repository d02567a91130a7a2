// The gated feed-forward layer: out = (silu(x w1^T + b1) * (x w2^T + b2)) w3^T + b3.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "xformers/kernels/base/error.h"

namespace xformers::ops {

// x [..., in], w1 and w2 [hidden, in], w3 [out, hidden], biases of the rows' length or none (b1 and b2 together). One
// dtype for all, except under autocast. Where w1 and w2 lie one behind the other in memory, their products are one. Of
// the hidden activations only x1 and x2 are kept for backward. Differentiable in everything.
at::Tensor swiglu(const at::Tensor& x, const at::Tensor& w1, const std::optional<at::Tensor>& b1, const at::Tensor& w2,
                  const std::optional<at::Tensor>& b2, const at::Tensor& w3,
                  const std::optional<at::Tensor>& b3 = std::nullopt);

// The same with w1w2 [2, hidden, in] and b1b2 [2, hidden]: gradients come in this shape too, without a copy.
at::Tensor swiglu_packed(const at::Tensor& x, const at::Tensor& w1w2, const std::optional<at::Tensor>& b1b2,
                         const at::Tensor& w3, const std::optional<at::Tensor>& b3 = std::nullopt);

// silu(x1) * x2, in one pass; x1 and x2 [rows, width]. Differentiable.
at::Tensor silu_gate(const at::Tensor& x1, const at::Tensor& x2);

}  // namespace xformers::ops
