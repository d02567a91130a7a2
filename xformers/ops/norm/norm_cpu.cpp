// The normalisations on CPU tensors.
#include "xformers/kernels/cpu/norm/norm_cpu.h"

#include "xformers/ops/common/threads.h"
#include "xformers/ops/norm/norm_run.h"

namespace xformers::ops {
namespace {

struct CpuNorms {
  static at::ScalarType weight_dtype(const at::Tensor& x, at::ScalarType /*dtype*/) { return compute_dtype(x); }
  static void forward(const at::Tensor& /*x*/, const NormFwdParams& params) {
    cpu::norm_forward(params, torch_threads());
  }
  static void backward(const at::Tensor& /*x*/, const NormBwdParams& params) {
    cpu::norm_backward(params, torch_threads());
  }
};

LayerNormOfSum::Result layer_norm_of_sum_cpu(const LayerNormOfSum& args) {
  args.check();
  const auto [out, sum] = args.empty();
  const at::Tensor x = args.x.contiguous(), residual = args.residual.contiguous();
  const at::ScalarType dtype = affine_dtype<CpuNorms>(x, args.weight, args.bias);
  const at::Tensor weight = in_dtype(args.weight, dtype), bias = in_dtype(args.bias, dtype);
  cpu::norm_of_sum({.norm = {.shape = to_norm_shape(x, NormKind::kLayer, args.eps),
                             .x = to_norm_rows(sum),
                             .increment = {},
                             .weight = data_or_null(weight),
                             .bias = data_or_null(bias),
                             .weight_dtype = to_dtype(dtype),
                             .out = to_norm_rows(out)},
                    .update = to_norm_rows(x),
                    .residual = to_norm_rows(residual),
                    .scale = args.scale},
                   torch_threads());
  return {out, sum};
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) {
  xformers::ops::implement_norms<xformers::ops::CpuNorms>(m);
  xformers::ops::implement<xformers::ops::layer_norm_of_sum_cpu>(m);
}
