// The indexing operators as typed functions, and the checks that all devices share.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <tuple>
#include <vector>

#include "xformers/ops/common/arguments.h"

namespace xformers::ops {

using IndexSelectCat = at::Tensor(at::TensorList sources, at::TensorList indices);
// Gradients of the sources, of the given shapes.
using IndexSelectCatBackward = std::vector<at::Tensor>(const at::Tensor& grad_out, at::TensorList indices,
                                                       c10::SymIntArrayRef rows, c10::SymIntArrayRef widths);
using ScaledIndexAdd = void(const at::Tensor& input, const at::Tensor& index, const at::Tensor& source,
                            const OptionalTensor& scaling, double alpha);
// (dsource, dscaling); shape [0] where not needed.
using ScaledIndexAddBackward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor& grad_out, const at::Tensor& index,
                                                                  const at::Tensor& source,
                                                                  const OptionalTensor& scaling, double alpha,
                                                                  bool need_dsource, bool need_dscaling);

const c10::TypedOperatorHandle<IndexSelectCat>& index_select_cat_op();
const c10::TypedOperatorHandle<IndexSelectCatBackward>& index_select_cat_backward_op();
const c10::TypedOperatorHandle<ScaledIndexAdd>& scaled_index_add_op();
const c10::TypedOperatorHandle<ScaledIndexAddBackward>& scaled_index_add_backward_op();

void check_index_select_cat(at::TensorList sources, at::TensorList indices);
void check_index_select_cat_backward(const at::Tensor& grad_out, at::TensorList indices, c10::SymIntArrayRef rows,
                                     c10::SymIntArrayRef widths);
void check_scaled_index_add(const at::Tensor& input, const at::Tensor& index, const at::Tensor& source,
                            const OptionalTensor& scaling);
void check_scaled_index_add_backward(const at::Tensor& grad_out, const at::Tensor& index, const at::Tensor& source,
                                     const OptionalTensor& scaling);

}  // namespace xformers::ops
