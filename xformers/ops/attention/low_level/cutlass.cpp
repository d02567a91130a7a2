// xformers::efficient_attention_forward_cutlass, efficient_attention_backward_cutlass: the interface of upstream's
// CUTLASS kernels.
//
// query [batch, seqlen, heads, head_dim], packed sequences with batch 1 and cu_seqlens; custom_mask_type 0: none,
// 1: causal from the top left, 2: causal from the bottom right, narrowed to window_size keys where that is given.
// lse [batch or sequences, heads, seqlen rounded up to 32], filled with +inf. philox_state, raw_lse: see
// contracts/appearance.h.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "xformers/ops/attention/attention_op.h"
#include "xformers/ops/attention/contracts/appearance.h"
#include "xformers/ops/attention/lse_formats.h"
#include "xformers/ops/common/check.h"
#include "xformers/ops/common/random.h"

namespace xformers::ops {
namespace {

const Check kCheck("efficient_attention");

void set_mask(AttentionArgs& args, int64_t custom_mask_type, std::optional<int64_t> window_size) {
  if (args.attn_bias && args.cu_seqlens_q) {
    kCheck.fail("attn_bias", "a tensor beside packed sequences", "one of the two", "use mask.with_bias(tensor)");
  }
  if (custom_mask_type < 0 || custom_mask_type > 2) {
    kCheck.fail("custom_mask_type", std::to_string(custom_mask_type), "0, 1 or 2",
                "0: none, 1: causal from the top left, 2: causal from the bottom right");
  }
  const int64_t window = window_size.value_or(0);
  if (window > 0 && custom_mask_type == 0) {
    kCheck.fail("window_size", std::to_string(window), "None without a causal mask", "use custom_mask_type 1 or 2");
  }
  if (custom_mask_type != 0) args.window_right = 0;
  if (window > 0) args.window_left = window - 1;
  args.bottom_right = custom_mask_type == 2;
}

// Widths of the padded lse.
c10::SymInt lse_width(const AttentionArgs& args, const std::optional<c10::SymInt>& max_seqlen_q) {
  if (args.cu_seqlens_q && !max_seqlen_q) {
    kCheck.fail("max_seqlen_q", "None", "a length where cu_seqlens_q is given", "pass the longest query length");
  }
  return ((args.cu_seqlens_q ? *max_seqlen_q : args.query.sym_size(1)) + 31) / 32 * 32;
}

using CutlassForward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, c10::SymInt, c10::SymInt>;

CutlassForward cutlass_forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                               const OptionalTensor& bias, const OptionalTensor& cu_seqlens_q,
                               const OptionalTensor& cu_seqlens_k, std::optional<c10::SymInt> max_seqlen_q,
                               std::optional<c10::SymInt> max_seqlen_k, double dropout_p, int64_t custom_mask_type,
                               bool compute_log_sumexp, std::optional<double> scale, const OptionalTensor& seqlen_k,
                               std::optional<int64_t> window_size, const OptionalTensor& philox_state, bool raw_lse) {
  const Appearance appearance{philox_state, raw_lse};
  AttentionArgs args{.query = query,
                     .key = key,
                     .value = value,
                     .attn_bias = bias,
                     .cu_seqlens_q = cu_seqlens_q,
                     .cu_seqlens_k = cu_seqlens_k,
                     .seqused_k = seqlen_k,
                     .scale = scale,
                     .p = dropout_p,
                     .need_lse = compute_log_sumexp};
  set_mask(args, custom_mask_type, window_size);
  args.philox_state = appearance.philox_state_or_draw(dropout_p, query.device());
  const auto counters = query.options().dtype(at::kLong);
  const c10::SymInt longest_q = max_seqlen_q.value_or(query.sym_size(1)),
                    longest_k = max_seqlen_k.value_or(key.sym_size(1));
  if (raw_lse) {
    const auto [out, lse, lse_low] = call(args);
    return {out, at::stack({lse, lse_low}), at::empty({0}, counters), at::empty({0}, counters), longest_q, longest_k};
  }
  at::Tensor seed = at::zeros({}, counters), offset = at::zeros({}, counters);
  if (args.philox_state) {
    seed = args.philox_state->select(0, 0).clone();
    offset = args.philox_state->select(0, 1).clone();
  }
  auto [out, lse, lse_low] = call(args);
  const c10::SymInt sequences = cu_seqlens_q ? cu_seqlens_q->sym_size(0) - 1 : query.sym_size(0);
  if (!compute_log_sumexp) {
    lse = at::empty_symint({sequences, query.sym_size(2), 0}, lse.options());
  } else if (cu_seqlens_q) {
    lse = pad_lse(lse, *cu_seqlens_q, lse_width(args, max_seqlen_q));
  } else {
    lse = lse_to_format(lse, "cutlass").clone();
  }
  return {out, lse, seed, offset, longest_q, longest_k};
}

// num_splits_key is how many parts upstream's kernel splits the keys into; ours chooses itself.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> cutlass_backward(
    const at::Tensor& grad_out, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& bias, const at::Tensor& out, const OptionalTensor& cu_seqlens_q,
    const OptionalTensor& cu_seqlens_k, c10::SymInt /*max_seqlen_q*/, c10::SymInt /*max_seqlen_k*/,
    const at::Tensor& logsumexp, double dropout_p, const at::Tensor& philox_seed, const at::Tensor& philox_offset,
    int64_t custom_mask_type, bool bias_requires_grad, std::optional<double> scale,
    std::optional<int64_t> /*num_splits_key*/, std::optional<int64_t> window_size) {
  AttentionGradArgs args;
  args.query = query;
  args.key = key;
  args.value = value;
  args.attn_bias = bias;
  args.cu_seqlens_q = cu_seqlens_q;
  args.cu_seqlens_k = cu_seqlens_k;
  args.scale = scale;
  set_mask(args, custom_mask_type, window_size);
  args.p = dropout_p;
  if (dropout_p != 0) args.philox_state = at::stack({philox_seed, philox_offset});
  args.grad_out = grad_out;
  args.out = out;
  args.lse = cu_seqlens_q ? unpad_lse(logsumexp, *cu_seqlens_q, query.sym_size(1))
                          : logsumexp.narrow_symint(-1, 0, query.sym_size(1));
  args.need_bias_grad = bias_requires_grad && bias;
  const auto [dq, dk, dv, dbias, dslopes, dsinks] = call(args);
  return {dq, dk, dv, dbias};
}

// xformer::memory_efficient_attention_forward (that namespace has no s)
at::Tensor simple_forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const OptionalTensor& bias, std::optional<double> p, std::optional<double> scale) {
  AttentionArgs args{.query = query, .key = key, .value = value, .attn_bias = bias, .scale = scale, .p = p.value_or(0)};
  args.philox_state = draw_dropout_state(args.p, query.device());
  return std::get<0>(call(args));
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def(
      "efficient_attention_forward_cutlass(Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? cu_seqlens_q, "
      "Tensor? cu_seqlens_k, SymInt? max_seqlen_q, SymInt? max_seqlen_k, float dropout_p, int custom_mask_type, "
      "bool compute_log_sumexp=False, *, float? scale=None, Tensor? seqlen_k=None, int? window_size=None, "
      "Tensor? philox_state=None, bool raw_lse=False) -> "
      "(Tensor out, Tensor lse, Tensor philox_seed, Tensor philox_offset, SymInt max_seqlen_q, SymInt max_seqlen_k)",
      {at::Tag::nondeterministic_seeded, at::Tag::pt2_compliant_tag});
  m.def(
      "efficient_attention_backward_cutlass(Tensor grad_out_, Tensor query, Tensor key, Tensor value, Tensor? bias, "
      "Tensor out, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, "
      "Tensor logsumexp, float dropout_p, Tensor philox_seed, Tensor philox_offset, int custom_mask_type, "
      "bool bias_requires_grad, *, float? scale=None, int? num_splits_key=None, int? window_size=None) -> "
      "(Tensor dq, Tensor dk, Tensor dv, Tensor dbias)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_FRAGMENT(xformer, m) {
  m.def(
      "memory_efficient_attention_forward(Tensor q, Tensor k, Tensor v, Tensor? b=None, float? p=0.0, "
      "float? scale=None) -> Tensor",
      {at::Tag::nondeterministic_seeded, at::Tag::pt2_compliant_tag});
}

// Gradients are an operator here, as in upstream: autograd goes through memory_efficient_attention.
TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  for (const char* name : {"efficient_attention_forward_cutlass", "efficient_attention_backward_cutlass"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}
TORCH_LIBRARY_IMPL(xformer, Autograd, m) {
  m.impl("memory_efficient_attention_forward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  m.impl("efficient_attention_forward_cutlass", xformers::ops::cutlass_forward);
  m.impl("efficient_attention_backward_cutlass", xformers::ops::cutlass_backward);
}
TORCH_LIBRARY_IMPL(xformer, CompositeExplicitAutograd, m) {
  m.impl("memory_efficient_attention_forward", xformers::ops::simple_forward);
}
