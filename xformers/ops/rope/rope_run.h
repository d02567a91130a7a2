// The rotary operators on tensors of a device: from tensors to the parameters of its kernels.
#pragma once

#include <ATen/ops/empty.h>

#include <optional>

#include "xformers/ops/common/to_params.h"
#include "xformers/ops/rope/rope_op.h"

namespace xformers::ops {

struct RopeSettings {
  RopeScaling scaling;
  bool adjacents;
  std::string_view internal_dtype;
};

// [1, seqlen, (groups,) heads, head_dim]
inline RopeTensor to_rope_tensor(const at::Tensor& t) {
  return {.data = const_cast<void*>(t.const_data_ptr()),
          .seq_stride = t.stride(1),
          .group_stride = t.dim() == 5 ? t.stride(2) : 0,
          .head_stride = t.stride(-2)};
}

inline at::Tensor apart_from(const at::Tensor& t, std::initializer_list<at::Tensor> written) {
  for (const at::Tensor& w : written) {
    if (t.is_alias_of(w)) return t.clone();
  }
  return t;
}

inline OptionalTensor to_int64(const OptionalTensor& t) {
  return t ? OptionalTensor(t->to(at::kLong).contiguous()) : std::nullopt;
}

inline bool same_elements(const at::Tensor& a, const at::Tensor& b) {
  return a.const_data_ptr() == b.const_data_ptr() && a.strides() == b.strides();
}

// kernel(params); in_place: it takes queries that are out_q.
template <class Kernel>
void run_rope_padded(const RopeTensors& t, const RopeSettings& settings, const at::Tensor& out_q, bool in_place,
                     const Kernel& kernel) {
  if (t.xq.numel() == 0 && t.xk.numel() == 0) return;
  const at::Tensor xq = in_place && same_elements(t.xq, out_q) ? apart_from(t.xq, {t.cache_k, t.cache_v})
                                                               : apart_from(t.xq, {out_q, t.cache_k, t.cache_v});
  const at::Tensor xk = apart_from(t.xk, {out_q, t.cache_k, t.cache_v});
  const at::Tensor xv = apart_from(t.xv, {out_q, t.cache_k, t.cache_v});
  const at::Tensor q_starts = t.q_seqstart.contiguous(), k_starts = t.k_seqstart.contiguous(),
                   k_lengths = t.k_seqlen.contiguous();
  const OptionalTensor first_seqpos = to_int64(t.first_seqpos), seqpos = to_int64(t.seqpos);
  kernel(RopePaddedParams{
      .dtype = to_dtype(xq.scalar_type()),
      .num_queries = xq.size(1),
      .num_keys = t.cache_k.size(1),
      .groups = xq.dim() == 5 ? xq.size(2) : 1,
      .heads_q = xq.size(-2),
      .heads_kv = has_expanded_heads(t.xk) ? 1 : xk.size(-2),
      .head_dim = xq.size(-1),
      .q = to_rope_tensor(xq),
      .k = to_rope_tensor(xk),
      .v = to_rope_tensor(xv),
      .out_q = to_rope_tensor(out_q),
      .cache_k = to_rope_tensor(t.cache_k),
      .cache_v = to_rope_tensor(t.cache_v),
      .batch = k_lengths.size(0),
      .q_starts = q_starts.const_data_ptr<int32_t>(),
      .k_starts = k_starts.const_data_ptr<int32_t>(),
      .k_lengths = k_lengths.const_data_ptr<int32_t>(),
      .first_seqpos = first_seqpos ? first_seqpos->const_data_ptr<int64_t>() : nullptr,
      .seqpos = seqpos ? seqpos->const_data_ptr<int64_t>() : nullptr,
      .scaling = settings.scaling,
      .layout = {.adjacents = settings.adjacents, .rotate_in_fp64 = settings.internal_dtype == "f64"}});
}

using Run = void (*)(const RopeTensors& t, const RopeSettings& settings, const at::Tensor& out_q);

// Both operators, on a device whose kernel is kRun.
template <Run kRun>
void rope_padded_out(const at::Tensor& xq, const at::Tensor& xk, const at::Tensor& xv, const at::Tensor& cache_k,
                     const at::Tensor& cache_v, const at::Tensor& q_seqstart, const at::Tensor& k_seqstart,
                     const at::Tensor& k_seqlen, double theta, double linear_scale, bool use_dynamic_scaling,
                     double dynamic_old_context_len, double dynamic_scale_factor, double dynamic_low_freq_factor,
                     double dynamic_high_freq_factor, const OptionalTensor& first_seqpos, const OptionalTensor& seqpos,
                     bool adjacents, std::string_view internal_dtype, const at::Tensor& out_q) {
  const RopeTensors tensors{xq, xk, xv, cache_k, cache_v, q_seqstart, k_seqstart, k_seqlen, first_seqpos, seqpos};
  check_rope_padded(tensors, internal_dtype, &out_q);
  kRun(tensors,
       {{theta, linear_scale, use_dynamic_scaling, dynamic_old_context_len, dynamic_scale_factor,
         dynamic_low_freq_factor, dynamic_high_freq_factor},
        adjacents,
        internal_dtype},
       out_q);
}

template <Run kRun>
at::Tensor rope_padded(const at::Tensor& xq, const at::Tensor& xk, const at::Tensor& xv, const at::Tensor& cache_k,
                       const at::Tensor& cache_v, const at::Tensor& q_seqstart, const at::Tensor& k_seqstart,
                       const at::Tensor& k_seqlen, double theta, double linear_scale, bool use_dynamic_scaling,
                       double dynamic_old_context_len, double dynamic_scale_factor, double dynamic_low_freq_factor,
                       double dynamic_high_freq_factor, const OptionalTensor& first_seqpos,
                       const OptionalTensor& seqpos, bool adjacents, std::string_view internal_dtype) {
  check_rope_padded({xq, xk, xv, cache_k, cache_v, q_seqstart, k_seqstart, k_seqlen, first_seqpos, seqpos},
                    internal_dtype, nullptr);
  at::Tensor out_q = at::empty_symint(xq.sym_sizes(), xq.options());
  rope_padded_out<kRun>(xq, xk, xv, cache_k, cache_v, q_seqstart, k_seqstart, k_seqlen, theta, linear_scale,
                        use_dynamic_scaling, dynamic_old_context_len, dynamic_scale_factor, dynamic_low_freq_factor,
                        dynamic_high_freq_factor, first_seqpos, seqpos, adjacents, internal_dtype, out_q);
  return out_q;
}

// [..., seqlen, head_dim] as [outer, seqlen, head_dim]: a view where strides allow.
template <class Kernel>
at::Tensor run_rotary(const at::Tensor& x_arg, double theta, bool adjacents, bool inverse, const Kernel& kernel) {
  check_rotary(x_arg);
  at::Tensor out = at::empty(x_arg.sizes(), x_arg.options());
  if (out.numel() == 0) return out;
  at::Tensor x = x_arg.reshape({-1, x_arg.size(-2), x_arg.size(-1)});
  if (x.stride(-1) != 1) x = x.contiguous();
  kernel(RotaryParams{.dtype = to_dtype(x.scalar_type()),
                      .outer = x.size(0),
                      .seqlen = x.size(1),
                      .head_dim = x.size(2),
                      .x = x.const_data_ptr(),
                      .out = out.mutable_data_ptr(),
                      .x_outer_stride = x.stride(0),
                      .x_seq_stride = x.stride(1),
                      .out_outer_stride = x.size(1) * x.size(2),
                      .out_seq_stride = x.size(2),
                      .inverse = inverse,
                      .scaling = {.theta = theta},
                      .layout = {.adjacents = adjacents}});
  return out;
}

}  // namespace xformers::ops
