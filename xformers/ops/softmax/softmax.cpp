// Schemas, public functions, checks, and calls lowered to params.
#include "xformers/ops/softmax/softmax.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "xformers/ops/common/to_params.h"
#include "xformers/ops/softmax/softmax_op.h"

namespace xformers::ops {
namespace {

bool broadcasts_to(const at::Tensor& mask, const at::Tensor& x) {
  if (mask.dim() > x.dim()) return false;
  for (int64_t i = 1; i <= mask.dim(); ++i) {
    if (mask.sym_size(-i) != 1 && mask.sym_size(-i) != x.sym_size(-i)) return false;
  }
  return true;
}

// [outer0, outer1, rows, width] of a contiguous tensor; the mask decides where the outer dimensions are cut in two.
SoftmaxShape to_shape(const at::Tensor& x, bool causal, bool log) {
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
MergedDims merge_dims(const at::Tensor& mask, int64_t first, int64_t last) {
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

// Two strides for all outer dimensions. Masks of models need no copy: what is shared by batches or heads stays so.
at::Tensor lower_mask(const at::Tensor& mask_arg, const at::Tensor& x, SoftmaxFwdParams& params) {
  at::Tensor mask = mask_arg.expand(x.sizes());
  if (mask.stride(-1) != 1 && mask.size(-1) > 1) mask = mask.contiguous();
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

}  // namespace

void check_softmax(const char* where, const at::Tensor& x, const OptionalTensor& mask, bool causal) {
  const ArgumentCheck check(where);
  check.floating("x", x);
  if (x.dim() < 1) check.fail("x", describe(x), "at least one dimension", "pass [..., columns]");
  if (causal && x.dim() < 2)
    check.fail("x", describe(x), "[..., rows, columns] where causal", "give it two dimensions");
  if (!mask) return;
  check.same_dtype("mask", *mask, x, "x");
  check.same_device("mask", *mask, x, "x");
  if (!broadcasts_to(*mask, x)) {
    check.fail("mask", describe(*mask), "a shape that broadcasts to " + describe_shape(x.sym_sizes()),
               "its dimensions, counted from the last, are 1 or those of x");
  }
}

void check_softmax_backward(const at::Tensor& grad_out, const at::Tensor& out, bool causal) {
  check_softmax("softmax_backward", out, std::nullopt, causal);
  const ArgumentCheck check("softmax_backward");
  check.shape("grad_out", grad_out, out.sym_sizes(), "it has the shape of the result");
  check.same_dtype("grad_out", grad_out, out, "out");
  check.same_device("grad_out", grad_out, out, "out");
}

SoftmaxForwardCall prepare_softmax(const at::Tensor& x, const OptionalTensor& mask, bool causal, bool log) {
  check_softmax(log ? "log_softmax" : "softmax", x, mask, causal);
  SoftmaxForwardCall call{.x = x.contiguous(), .mask = {}, .result = at::empty(x.sizes(), x.options()), .params = {}};
  call.params.shape = to_shape(x, causal, log);
  call.params.x = call.x.const_data_ptr();
  call.params.out = call.result.mutable_data_ptr();
  if (mask && x.numel() > 0) call.mask = lower_mask(*mask, call.x, call.params);
  return call;
}

SoftmaxBackwardCall prepare_softmax_backward(const at::Tensor& grad_out, const at::Tensor& out, bool causal, bool log) {
  check_softmax_backward(grad_out, out, causal);
  SoftmaxBackwardCall call{.grad_out = grad_out.contiguous(),
                           .out = out.contiguous(),
                           .result = at::empty(out.sizes(), out.options()),
                           .params = {}};
  call.params = {.shape = to_shape(out, causal, log),
                 .out = call.out.const_data_ptr(),
                 .dout = call.grad_out.const_data_ptr(),
                 .dx = call.result.mutable_data_ptr()};
  return call;
}

XFORMERS_TYPED_OP(softmax_op, Softmax, "softmax")
XFORMERS_TYPED_OP(log_softmax_op, Softmax, "log_softmax")
XFORMERS_TYPED_OP(softmax_backward_op, SoftmaxBackward, "softmax_backward")

at::Tensor softmax(const at::Tensor& x, const OptionalTensor& mask, bool causal) {
  return softmax_op().call(x, mask, causal);
}

at::Tensor log_softmax(const at::Tensor& x, const OptionalTensor& mask, bool causal) {
  return log_softmax_op().call(x, mask, causal);
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("softmax(Tensor x, Tensor? mask=None, bool causal=False) -> Tensor", tags);
  m.def("log_softmax(Tensor x, Tensor? mask=None, bool causal=False) -> Tensor", tags);
  m.def("softmax_backward(Tensor grad_out, Tensor out, bool causal=False, bool log=False) -> Tensor", tags);
}
