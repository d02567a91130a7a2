// The rotary operators on tensors of a device: from tensors to the parameters of its kernels. A `Device` has
//   padded(x, params), rotary(x, params)   run its kernels where x is
//   check_values(args)                     refuses offsets out of range, if it looks at them by now
//   kInPlace                               its kernel takes queries that are out_q
#pragma once

#include "xformers/ops/common/to_params.h"
#include "xformers/ops/rope/rope_op.h"

namespace xformers::ops {

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

template <class Device>
void run_rope_padded(const RopePadded& t, const at::Tensor& out_q) {
  Device::check_values(t);
  if (t.xq.numel() == 0 && t.xk.numel() == 0) return;
  const at::Tensor xq = Device::kInPlace && same_elements(t.xq, out_q)
                            ? apart_from(t.xq, {t.cache_k, t.cache_v})
                            : apart_from(t.xq, {out_q, t.cache_k, t.cache_v});
  const at::Tensor xk = apart_from(t.xk, {out_q, t.cache_k, t.cache_v});
  const at::Tensor xv = apart_from(t.xv, {out_q, t.cache_k, t.cache_v});
  const at::Tensor q_starts = t.q_seqstart.contiguous(), k_starts = t.k_seqstart.contiguous(),
                   k_lengths = t.k_seqlen.contiguous();
  const OptionalTensor first_seqpos = to_int64(t.first_seqpos), seqpos = to_int64(t.seqpos);
  Device::padded(xq,
                 RopePaddedParams{.dtype = to_dtype(xq.scalar_type()),
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
                                  .scaling = scaling_of(t),
                                  .layout = {.adjacents = t.adjacents, .rotate_in_fp64 = t.internal_dtype == "f64"}});
}

template <class Device>
void run_rope_padded_out(const RopePaddedOut& args) {
  args.check();
  run_rope_padded<Device>(args, args.out_q);
}

template <class Device>
at::Tensor run_rope_padded_new(const RopePadded& args) {
  args.check();
  at::Tensor out_q = args.empty();
  run_rope_padded<Device>(args, out_q);
  return out_q;
}

// [..., seqlen, head_dim] as [outer, seqlen, head_dim]: a view where strides allow.
template <class Device>
at::Tensor run_rotary(const Rotary& args) {
  args.check();
  at::Tensor out = args.empty();
  if (out.numel() == 0) return out;
  const at::Tensor x = with_unit_last_stride(args.x.reshape({-1, args.x.size(-2), args.x.size(-1)}));
  Device::rotary(x, RotaryParams{.dtype = to_dtype(x.scalar_type()),
                                 .outer = x.size(0),
                                 .seqlen = x.size(1),
                                 .head_dim = x.size(2),
                                 .x = x.const_data_ptr(),
                                 .out = out.mutable_data_ptr(),
                                 .x_outer_stride = x.stride(0),
                                 .x_seq_stride = x.stride(1),
                                 .out_outer_stride = x.size(1) * x.size(2),
                                 .out_seq_stride = x.size(2),
                                 .inverse = args.inverse,
                                 .scaling = scaling_of(args),
                                 .layout = {.adjacents = args.adjacents}});
  return out;
}

template <class Device>
void implement_rope(torch::Library& m) {
  implement<run_rope_padded_new<Device>>(m);
  implement<run_rope_padded_out<Device>>(m);
  implement<run_rotary<Device>>(m);
}

}  // namespace xformers::ops
