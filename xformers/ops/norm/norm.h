// Normalisation over the last dimension.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "xformers/kernels/base/error.h"

namespace xformers::ops {

// x / sqrt(mean(x^2) + eps) * weight, in x's dtype; statistics and products in fp32 (fp64 for fp64). x and weight
// contiguous; weight [width], of any floating dtype. Differentiable in both.
at::Tensor rms_norm(const at::Tensor& x, const std::optional<at::Tensor>& weight = std::nullopt, double eps = 1e-6);

// x += y in place, in x's dtype; returns rms_norm of the sum. The statistics are those of the sum before it was
// rounded.
at::Tensor rms_norm_add(const at::Tensor& x, const at::Tensor& y,
                        const std::optional<at::Tensor>& weight = std::nullopt, double eps = 1e-6);

// (x - mean) / sqrt(var + eps) * weight + bias, in x's dtype. Any strides.
at::Tensor layer_norm(const at::Tensor& x, const std::optional<at::Tensor>& weight = std::nullopt,
                      const std::optional<at::Tensor>& bias = std::nullopt, double eps = 1e-6);

// (the layer norm of sum, sum) with sum = x + scale * residual, rounded to their dtype: a residual path and the norm
// behind it, which on the CPU are one pass over memory. x and residual of one shape and dtype. Differentiable in all.
std::tuple<at::Tensor, at::Tensor> layer_norm_of_sum(const at::Tensor& x, const at::Tensor& residual,
                                                     const std::optional<at::Tensor>& weight = std::nullopt,
                                                     const std::optional<at::Tensor>& bias = std::nullopt,
                                                     double eps = 1e-6, double scale = 1);

// layer_norm with the eps that the fused layers had: at least 1.6e-5 for fp16.
at::Tensor fused_layer_norm(const at::Tensor& x, const std::optional<at::Tensor>& weight = std::nullopt,
                            const std::optional<at::Tensor>& bias = std::nullopt, double eps = 1e-6);

// layer_norm_of_sum with that eps; shapes that broadcast and dtypes that differ are added as at::add does.
std::tuple<at::Tensor, at::Tensor> fused_layer_norm_of_sum(const at::Tensor& x, const at::Tensor& residual,
                                                           const std::optional<at::Tensor>& weight = std::nullopt,
                                                           const std::optional<at::Tensor>& bias = std::nullopt,
                                                           double eps = 1e-6, double scale = 1);

}  // namespace xformers::ops
