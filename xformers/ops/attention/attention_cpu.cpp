// The attention operators on CPU tensors: check, allocate the results, hand pointers and strides to the kernels.
#include "xformers/kernels/cpu/attention/attention_cpu.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "xformers/ops/attention/attention_check.h"
#include "xformers/ops/common/expanded.h"
#include "xformers/ops/common/threads.h"
#include "xformers/ops/common/to_params.h"

namespace xformers::ops {
namespace {

// A boolean mask as what is added: 0 where True, -inf where False.
at::Tensor to_score_tensor(const at::Tensor& bias, at::ScalarType dtype) {
  if (bias.scalar_type() != at::kBool) return bias;
  return map_unexpanded(bias, bias.dim(), [&](const at::Tensor& mask) {
    const auto options = mask.options().dtype(dtype);
    const double hidden = -std::numeric_limits<double>::infinity();
    return at::where(mask, at::zeros({}, options), at::full({}, hidden, options));
  });
}

SeqLayout to_layout(const AttentionInputs& in) {
  if (!in.cu_seqlens_q) return {};
  return {.num_sequences = in.cu_seqlens_q->size(0) - 1,
          .cu_seqlens_q = in.cu_seqlens_q->const_data_ptr<int32_t>(),
          .cu_seqlens_k = in.cu_seqlens_k->const_data_ptr<int32_t>(),
          .seqused_k = in.seqused_k ? in.seqused_k->const_data_ptr<int32_t>() : nullptr};
}

Dropout to_dropout(const AttentionInputs& in) {
  if (in.p == 0) return {};
  const int64_t* words = in.philox_state->const_data_ptr<int64_t>();
  return {.p = in.p, .philox_seed = static_cast<uint64_t>(words[0]), .philox_offset = static_cast<uint64_t>(words[1])};
}

// What forward and backward params have in common.
template <class Params>
void fill_common(Params& params, const AttentionInputs& in, HeadDims dims, bool bottom_right,
                 std::optional<double> scale, const OptionalTensor& scores) {
  params.shape = to_shape(in.query, in.key, in.value, dims);
  params.q = to_heads(in.query, dims);
  params.k = to_heads(in.key, dims);
  params.v = to_heads(in.value, dims);
  params.seq = to_layout(in);
  params.band = {.window_left = in.window_left.expect_int(),
                 .window_right = in.window_right.expect_int(),
                 .bottom_right = bottom_right};
  if (scores) params.bias = to_score_bias(*scores, dims);
  params.dropout = to_dropout(in);
  params.softmax_scale = scale.value_or(1 / std::sqrt(static_cast<double>(params.shape.head_dim)));
}

at::DimVector concrete(const c10::SymDimVector& sizes) {
  at::DimVector out;
  for (const auto& size : sizes) out.push_back(size.expect_int());
  return out;
}

std::tuple<at::Tensor, at::Tensor> forward_cpu(const at::Tensor& query_arg, const at::Tensor& key_arg,
                                               const at::Tensor& value_arg, const OptionalTensor& attn_bias,
                                               c10::SymInt window_left, c10::SymInt window_right, bool bottom_right,
                                               const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                                               const OptionalTensor& seqused_k, std::optional<double> scale, double p,
                                               const OptionalTensor& philox_state, bool need_lse) {
  const auto inputs_of = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    return AttentionInputs{q,         k, v,           attn_bias, window_left, window_right, cu_seqlens_q, cu_seqlens_k,
                           seqused_k, p, philox_state};
  };
  const AttentionInputs given = inputs_of(query_arg, key_arg, value_arg);
  check_inputs(given);
  check_offsets_on_cpu(given);

  const at::Tensor query = with_unit_last_stride(query_arg), key = with_unit_last_stride(key_arg),
                   value = with_unit_last_stride(value_arg);
  const OptionalTensor scores =
      attn_bias ? OptionalTensor(to_score_tensor(*attn_bias, query.scalar_type())) : std::nullopt;
  const auto lse_options = query.options().dtype(lse_dtype(query));
  at::Tensor out = at::empty(concrete(out_sizes(query, value)), query.options());
  at::Tensor lse = at::empty(need_lse ? concrete(lse_sizes(query)) : at::DimVector{0}, lse_options);
  if (out.numel() == 0) return {out, lse};

  const HeadDims dims = head_dims(query, key, value);
  AttentionFwdParams params;
  fill_common(params, inputs_of(query, key, value), dims, bottom_right, scale, scores);
  params.out = to_heads(out, dims);
  if (need_lse) params.lse = to_rows(lse, dims);
  cpu::attention_forward(params, torch_threads());
  return {out, lse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_cpu(
    const at::Tensor& grad_out_arg, const at::Tensor& query_arg, const at::Tensor& key_arg, const at::Tensor& value_arg,
    const at::Tensor& out_arg, const at::Tensor& lse_arg, const OptionalTensor& attn_bias, c10::SymInt window_left,
    c10::SymInt window_right, bool bottom_right, const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
    const OptionalTensor& seqused_k, std::optional<double> scale, double p, const OptionalTensor& philox_state,
    const OptionalTensor& grad_lse_arg, bool need_bias_grad) {
  const auto inputs_of = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    return AttentionInputs{q,         k, v,           attn_bias, window_left, window_right, cu_seqlens_q, cu_seqlens_k,
                           seqused_k, p, philox_state};
  };
  const AttentionInputs given = inputs_of(query_arg, key_arg, value_arg);
  check_inputs(given);
  check_gradient_inputs(given, grad_out_arg, out_arg, lse_arg, grad_lse_arg);
  check_offsets_on_cpu(given);

  const at::Tensor query = with_unit_last_stride(query_arg), key = with_unit_last_stride(key_arg),
                   value = with_unit_last_stride(value_arg);
  const at::Tensor out = with_unit_last_stride(out_arg), grad_out = with_unit_last_stride(grad_out_arg);
  const at::Tensor lse = with_unit_last_stride(lse_arg);
  const OptionalTensor grad_lse = grad_lse_arg ? OptionalTensor(with_unit_last_stride(*grad_lse_arg)) : std::nullopt;
  const OptionalTensor scores =
      attn_bias ? OptionalTensor(to_score_tensor(*attn_bias, query.scalar_type())) : std::nullopt;
  const auto like = [&](const at::Tensor& t) { return at::empty(t.sizes(), query.options()); };
  at::Tensor dq = like(query), dk = like(key), dv = like(value);
  const bool want_bias_grad = need_bias_grad && attn_bias;
  at::Tensor dbias = want_bias_grad ? like(*attn_bias) : at::empty({0}, query.options());
  if (out.numel() == 0) {  // no query, so nothing reaches the keys
    dk.zero_();
    dv.zero_();
    return {dq, dk, dv, dbias};
  }

  const HeadDims dims = head_dims(query, key, value);
  AttentionBwdParams params;
  fill_common(params, inputs_of(query, key, value), dims, bottom_right, scale, scores);
  params.out = to_heads(out, dims);
  params.dout = to_heads(grad_out, dims);
  params.lse = to_rows(lse, dims);
  if (grad_lse) params.dlse = to_rows(*grad_lse, dims);
  params.dq = to_heads(dq, dims);
  params.dk = to_heads(dk, dims);
  params.dv = to_heads(dv, dims);
  if (want_bias_grad) params.dbias = to_score_bias(dbias, dims);
  cpu::attention_backward(params, torch_threads());
  return {dq, dk, dv, dbias};
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) {
  m.impl("attention_forward", xformers::ops::forward_cpu);
  m.impl("attention_backward", xformers::ops::backward_cpu);
}
