// Products on a GPU.
#include "xformers/kernels/cuda/product/product_cuda.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include "xformers/ops/common/cuda_call.h"
#include "xformers/ops/common/product.h"
#include "xformers/ops/common/to_params.h"

namespace xformers::ops {
namespace {

bool fits(const at::Tensor& t) { return t.dim() == 2 && (t.stride(0) == 1 || t.stride(1) == 1); }

ProductOperand to_operand(const at::Tensor& t) {
  const bool transposed = t.stride(1) != 1;
  return {.data = t.const_data_ptr(), .stride = transposed ? t.stride(1) : t.stride(0), .transposed = transposed};
}

at::Tensor product_cuda(const Product& args) {
  const auto& [a, b, bias] = args;
  const bool half = a.scalar_type() == at::kBFloat16 || a.scalar_type() == at::kHalf;
  if (!half || a.scalar_type() != b.scalar_type() || !fits(a) || !fits(b) || a.size(1) != b.size(0) ||
      (bias && (bias->scalar_type() != a.scalar_type() || bias->dim() != 1 || !bias->is_contiguous() ||
                bias->size(0) != b.size(1)))) {
    return plain_product(args);
  }
  ProductParams params{.dtype = to_dtype(a.scalar_type()),
                       .m = a.size(0),
                       .n = b.size(1),
                       .k = a.size(1),
                       .a = to_operand(a),
                       .b = to_operand(b),
                       .bias = bias ? bias->const_data_ptr() : nullptr};
  if (!cuda::may_choose_product(params)) return plain_product(args);
  CudaCall call(a.device());
  at::Tensor out = at::empty({params.m, params.n}, a.options());
  params.out = out.mutable_data_ptr();
  cuda::product(params, call.stream(cuda::kProductWorkspace),
                [&] { bias ? at::addmm_out(out, *bias, a, b) : at::mm_out(out, a, b); });
  return out;
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) { xformers::ops::implement<xformers::ops::product_cuda>(m); }
