// Softmax on tensors of a device: from tensors to the parameters of its kernels. A `Device` has
//   forward(x, params), backward(x, params)   run its kernels where x is
#pragma once

#include "xformers/kernels/params/softmax.h"
#include "xformers/ops/common/to_params.h"
#include "xformers/ops/softmax/softmax_op.h"

namespace xformers::ops {

// [outer0, outer1, rows, width] of a contiguous tensor; the mask decides where the outer dimensions are cut in two.
inline SoftmaxShape to_softmax_shape(const at::Tensor& x, bool causal, bool log) {
  SoftmaxShape shape{.dtype = to_dtype(x.scalar_type()), .log = log, .causal = causal};
  shape.width = x.size(-1);
  shape.rows = x.dim() > 1 ? x.size(-2) : 1;
  for (int64_t i = 0; i + 2 < x.dim(); ++i) shape.outer1 *= x.size(i);
  return shape;
}

// Outer dimensions [first, last) of an expanded mask as one: its size and stride, if there is one.
struct MergedDims {
  int64_t size = 1, stride = 0;
  bool possible = true;
};
inline MergedDims merge_dims(const at::Tensor& mask, int64_t first, int64_t last) {
  MergedDims merged;
  for (int64_t i = last - 1; i >= first; --i) {
    if (mask.size(i) == 1) continue;
    if (merged.size == 1) {
      merged.stride = mask.stride(i);
    } else if (mask.stride(i) != merged.stride * merged.size) {
      merged.possible = false;
    }
    merged.size *= mask.size(i);
  }
  return merged;
}

// Two strides for all outer dimensions. Masks of models need no copy: what is shared by batches or heads stays so. The
// result keeps the memory that params point into.
inline at::Tensor lower_mask(const at::Tensor& given, const at::Tensor& x, SoftmaxFwdParams& params) {
  at::Tensor mask = given.expand(x.sizes());
  if (!has_unit_last_stride(mask)) mask = mask.contiguous();
  const int64_t outer_dims = x.dim() > 1 ? x.dim() - 2 : 0;
  for (bool copied : {false, true}) {
    if (copied) mask = mask.contiguous();
    for (int64_t cut = 0; cut <= outer_dims; ++cut) {
      const MergedDims outer0 = merge_dims(mask, 0, cut), outer1 = merge_dims(mask, cut, outer_dims);
      if (!outer0.possible || !outer1.possible) continue;
      params.shape.outer0 = outer0.size;
      params.shape.outer1 = outer1.size;
      params.mask = {.data = mask.const_data_ptr(),
                     .outer0_stride = outer0.stride,
                     .outer1_stride = outer1.stride,
                     .row_stride = x.dim() > 1 ? mask.stride(-2) : 0};
      return mask;
    }
  }
  return mask;  // not reached: contiguous dimensions merge
}

template <class Device, bool kLog>
at::Tensor run_softmax(const SoftmaxOf<kLog>& args) {
  args.check();
  const at::Tensor x = args.x.contiguous();
  at::Tensor out = args.empty();
  SoftmaxFwdParams params{.shape = to_softmax_shape(x, args.causal, kLog),
                          .x = x.const_data_ptr(),
                          .mask = {},
                          .out = out.mutable_data_ptr()};
  const at::Tensor mask = args.mask && x.numel() > 0 ? lower_mask(*args.mask, x, params) : at::Tensor();
  Device::forward(x, params);
  return out;
}

template <class Device>
at::Tensor run_softmax_backward(const SoftmaxBackward& args) {
  args.check();
  const at::Tensor grad_out = args.grad_out.contiguous(), out = args.out.contiguous();
  at::Tensor dx = args.empty();
  Device::backward(out, SoftmaxBwdParams{.shape = to_softmax_shape(out, args.causal, args.log),
                                         .out = out.const_data_ptr(),
                                         .dout = grad_out.const_data_ptr(),
                                         .dx = dx.mutable_data_ptr()});
  return dx;
}

template <class Device>
void implement_softmax(torch::Library& m) {
  implement<run_softmax<Device, false>>(m);
  implement<run_softmax<Device, true>>(m);
  implement<run_softmax_backward<Device>>(m);
}

}  // namespace xformers::ops
