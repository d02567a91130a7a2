// Under autocast, query, key, value and a score bias are taken in the region's dtype (fp64 and masks stay as they are).
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "xformers/ops/attention/attention_op.h"
#include "xformers/ops/common/expanded.h"

namespace xformers::ops {
namespace {

template <c10::DeviceType kDevice>
std::tuple<at::Tensor, at::Tensor> forward_autocast(const at::Tensor& query, const at::Tensor& key,
                                                    const at::Tensor& value, const OptionalTensor& attn_bias,
                                                    c10::SymInt window_left, c10::SymInt window_right,
                                                    bool bottom_right, const OptionalTensor& cu_seqlens_q,
                                                    const OptionalTensor& cu_seqlens_k, const OptionalTensor& seqused_k,
                                                    std::optional<double> scale, double p,
                                                    const OptionalTensor& philox_state, bool need_lse) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(kDevice));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(kDevice);
  const auto cast = [&](const at::Tensor& t) {
    if (t.scalar_type() == dtype) return t;
    return map_unexpanded(t, t.dim(),
                          [&](const at::Tensor& once) { return at::autocast::cached_cast(dtype, once, kDevice); });
  };
  return attention_forward_op().call(
      cast(query), cast(key), cast(value), attn_bias ? OptionalTensor(cast(*attn_bias)) : std::nullopt, window_left,
      window_right, bottom_right, cu_seqlens_q, cu_seqlens_k, seqused_k, scale, p, philox_state, need_lse);
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, AutocastCPU, m) {
  m.impl("attention_forward", xformers::ops::forward_autocast<c10::DeviceType::CPU>);
}

TORCH_LIBRARY_IMPL(xformers, AutocastCUDA, m) {
  m.impl("attention_forward", xformers::ops::forward_autocast<c10::DeviceType::CUDA>);
}
