// The normalisation operators as typed functions, and the checks that all devices share.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <tuple>

#include "xformers/ops/common/arguments.h"

namespace xformers::ops {

using RmsNorm = at::Tensor(const at::Tensor& x, const OptionalTensor& weight, double eps);
using RmsNormAdd = at::Tensor(const at::Tensor& x, const at::Tensor& y, const OptionalTensor& weight, double eps);
using LayerNorm = at::Tensor(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps);
// (dx, dweight); shape [0] where not needed.
using RmsNormBackward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor& grad_out, const at::Tensor& x,
                                                           const OptionalTensor& weight, double eps, bool need_dx,
                                                           bool need_dweight);
// (dx, dweight, dbias); weights' gradients in the dtype of weight or, without one, of x.
using LayerNormBackward = std::tuple<at::Tensor, at::Tensor, at::Tensor>(const at::Tensor& grad_out,
                                                                         const at::Tensor& x,
                                                                         const OptionalTensor& weight, double eps,
                                                                         bool need_dx, bool need_dweight,
                                                                         bool need_dbias);

const c10::TypedOperatorHandle<RmsNorm>& rms_norm_op();
const c10::TypedOperatorHandle<RmsNormAdd>& rms_norm_add_op();
const c10::TypedOperatorHandle<RmsNormBackward>& rms_norm_backward_op();
const c10::TypedOperatorHandle<LayerNorm>& layer_norm_op();
const c10::TypedOperatorHandle<LayerNormBackward>& layer_norm_backward_op();

void check_norm(const char* where, const at::Tensor& x, const OptionalTensor& weight,
                const OptionalTensor& bias = std::nullopt);
void check_rms_norm(const char* where, const at::Tensor& x, const OptionalTensor& weight);  // contiguous too
void check_rms_norm_add(const at::Tensor& x, const at::Tensor& y, const OptionalTensor& weight);
void check_norm_backward(const char* where, const at::Tensor& grad_out, const at::Tensor& x,
                         const OptionalTensor& weight);

// The dtype of the weight's gradient.
inline at::ScalarType weight_dtype(const at::Tensor& x, const OptionalTensor& weight) {
  return weight ? weight->scalar_type() : x.scalar_type();
}

}  // namespace xformers::ops
