// The softmax operators as typed functions, and what all devices share: checks, and calls lowered to params.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include "xformers/kernels/params/softmax.h"
#include "xformers/ops/common/arguments.h"

namespace xformers::ops {

using Softmax = at::Tensor(const at::Tensor& x, const OptionalTensor& mask, bool causal);
using SoftmaxBackward = at::Tensor(const at::Tensor& grad_out, const at::Tensor& out, bool causal, bool log);

const c10::TypedOperatorHandle<Softmax>& softmax_op();
const c10::TypedOperatorHandle<Softmax>& log_softmax_op();
const c10::TypedOperatorHandle<SoftmaxBackward>& softmax_backward_op();

void check_softmax(const char* where, const at::Tensor& x, const OptionalTensor& mask, bool causal);
void check_softmax_backward(const at::Tensor& grad_out, const at::Tensor& out, bool causal);

// A checked call, its result allocated; holds on to the tensors that the pointers of params point into.
struct SoftmaxForwardCall {
  at::Tensor x, mask, result;
  SoftmaxFwdParams params;
};
struct SoftmaxBackwardCall {
  at::Tensor grad_out, out, result;
  SoftmaxBwdParams params;
};
SoftmaxForwardCall prepare_softmax(const at::Tensor& x, const OptionalTensor& mask, bool causal, bool log);
SoftmaxBackwardCall prepare_softmax_backward(const at::Tensor& grad_out, const at::Tensor& out, bool causal, bool log);

}  // namespace xformers::ops
