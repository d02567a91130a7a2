// The fused element-wise layer: y = dropout(activation(x + bias)) + residual, and the linear layer in front of it.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "xformers/kernels/base/error.h"
#include "xformers/kernels/params/bias_act_dropout.h"

namespace xformers::ops {

// In one pass, in fp32 (fp64 for fp64) with one rounding to x's dtype. bias [width], of any floating dtype; residual
// like x. p in [0, 1]; 1 leaves nothing but the residual. The mask comes from the default generator
// (torch::manual_seed) and is computed again in backward instead of being kept; x is kept only where there is an
// activation. Differentiable in x, bias and residual.
at::Tensor fused_dropout(const at::Tensor& x, double p, const std::optional<at::Tensor>& bias = std::nullopt,
                         Activation activation = Activation::kNone,
                         const std::optional<at::Tensor>& residual = std::nullopt);

// The same as an element-wise layer of PyTorch would compute it: gelu is the exact one (erf), and autocast leaves x in
// its dtype. x and residual are promoted to one dtype, which is the result's.
at::Tensor elementwise_dropout(const at::Tensor& x, double p, const std::optional<at::Tensor>& bias = std::nullopt,
                               Activation activation = Activation::kNone,
                               const std::optional<at::Tensor>& residual = std::nullopt);

// The same as fused_dropout with the random state given: int64 [2], as torch.ops.xformers.draw_philox_state draws it.
// Needed where 0 < p < 1.
at::Tensor bias_act_dropout(const at::Tensor& x, const std::optional<at::Tensor>& bias = std::nullopt,
                            const std::optional<at::Tensor>& residual = std::nullopt,
                            Activation activation = Activation::kNone, double p = 0,
                            const std::optional<at::Tensor>& philox_state = std::nullopt);

// activation(x weight^T + bias); x [..., in], weight [out, in], bias [out].
at::Tensor fused_linear(const at::Tensor& x, const at::Tensor& weight,
                        const std::optional<at::Tensor>& bias = std::nullopt,
                        Activation activation = Activation::kNone);

}  // namespace xformers::ops
