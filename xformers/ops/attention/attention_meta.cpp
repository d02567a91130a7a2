// Shapes without data, for tracing and compiling: sizes stay symbolic, or each would be compiled anew.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "xformers/ops/attention/attention_check.h"

namespace xformers::ops {
namespace {

AttentionResult forward_meta(const AttentionArgs& args) {
  check_inputs(args);
  const auto options = args.query.options();
  const auto lse_shape = args.need_lse ? lse_sizes(args.query) : c10::SymDimVector{0};
  const auto row_statistic = [&] { return at::empty_symint(lse_shape, options.dtype(lse_dtype(args.query))); };
  return {at::empty_symint(out_sizes(args), options.dtype(args.out_dtype.value_or(args.query.scalar_type()))),
          row_statistic(), row_statistic()};
}

at::Tensor like(const AttentionGradArgs& args, const at::Tensor& t) {
  return at::empty_symint(t.sym_sizes(), args.query.options());
}

at::Tensor bias_grad(const AttentionGradArgs& args) {
  return args.need_bias_grad && args.attn_bias ? like(args, *args.attn_bias) : at::empty({0}, args.query.options());
}

AttentionGradients backward_meta(const AttentionGradArgs& args) {
  check_inputs(args);
  check_gradient_inputs(args);
  return {like(args, args.query), like(args, args.key), like(args, args.value), bias_grad(args)};
}

AttentionStackedGradients backward_stacked_meta(const AttentionGradArgs& args) {
  check_inputs(args);
  check_gradient_inputs(args);
  check_stackable(args);
  return {at::empty_symint(stacked_sizes(args), args.query.options()), bias_grad(args)};
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Meta, m) {
  using namespace xformers::ops;
  m.impl("attention_forward", AttentionForward::entry<forward_meta>);
  m.impl("attention_backward", AttentionBackward::entry<backward_meta>);
  m.impl("attention_backward_stacked", AttentionBackwardStacked::entry<backward_stacked_meta>);
}
