// Shapes without data, for tracing and compiling: sizes stay symbolic, or each would be compiled anew.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "xformers/ops/attention/attention_check.h"

namespace xformers::ops {
namespace {

std::tuple<at::Tensor, at::Tensor> forward_meta(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                                const OptionalTensor& attn_bias, c10::SymInt window_left,
                                                c10::SymInt window_right, bool /*bottom_right*/,
                                                const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                                                const OptionalTensor& seqused_k, std::optional<double> /*scale*/,
                                                double p, const OptionalTensor& philox_state, bool need_lse) {
  check_inputs({query, key, value, attn_bias, window_left, window_right, cu_seqlens_q, cu_seqlens_k, seqused_k, p,
                philox_state});
  const auto lse_shape = need_lse ? lse_sizes(query) : c10::SymDimVector{0};
  return {at::empty_symint(out_sizes(query, value), query.options()),
          at::empty_symint(lse_shape, query.options().dtype(lse_dtype(query)))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_meta(
    const at::Tensor& grad_out, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& out, const at::Tensor& lse, const OptionalTensor& attn_bias, c10::SymInt window_left,
    c10::SymInt window_right, bool /*bottom_right*/, const OptionalTensor& cu_seqlens_q,
    const OptionalTensor& cu_seqlens_k, const OptionalTensor& seqused_k, std::optional<double> /*scale*/, double p,
    const OptionalTensor& philox_state, const OptionalTensor& grad_lse, bool need_bias_grad) {
  const AttentionInputs inputs{query,        key,          value,     attn_bias, window_left, window_right,
                               cu_seqlens_q, cu_seqlens_k, seqused_k, p,         philox_state};
  check_inputs(inputs);
  check_gradient_inputs(inputs, grad_out, out, lse, grad_lse);
  const auto like = [&](const at::Tensor& t) { return at::empty_symint(t.sym_sizes(), query.options()); };
  return {like(query), like(key), like(value),
          need_bias_grad && attn_bias ? like(*attn_bias) : at::empty({0}, query.options())};
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Meta, m) {
  m.impl("attention_forward", xformers::ops::forward_meta);
  m.impl("attention_backward", xformers::ops::backward_meta);
}
