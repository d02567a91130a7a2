// Softmax over the last dimension.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "xformers/kernels/base/error.h"

namespace xformers::ops {

// softmax(x + mask), in fp32 (fp64 for fp64) with one rounding to x's dtype. mask has x's dtype and any shape that
// broadcasts to x's; causal: row r of [..., rows, columns] sees the columns up to r. A row that sees nothing is NaN.
// Differentiable in x and mask; only the result is kept for that.
at::Tensor softmax(const at::Tensor& x, const std::optional<at::Tensor>& mask = std::nullopt, bool causal = false);

// Its logarithm, without the detour.
at::Tensor log_softmax(const at::Tensor& x, const std::optional<at::Tensor>& mask = std::nullopt, bool causal = false);

}  // namespace xformers::ops
