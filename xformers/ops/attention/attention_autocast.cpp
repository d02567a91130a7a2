// Under autocast, query, key, value and a score bias are taken in the region's dtype (fp64, masks and quantised keys
// stay as they are).
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "xformers/ops/attention/attention_op.h"
#include "xformers/ops/common/expanded.h"

namespace xformers::ops {
namespace {

template <c10::DeviceType kDevice>
AttentionResult forward_autocast(const AttentionArgs& given) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(kDevice));
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(kDevice);
  const auto cast = [&](const at::Tensor& t) {
    if (t.scalar_type() == dtype) return t;
    return map_unexpanded(t, t.dim(),
                          [&](const at::Tensor& once) { return at::autocast::cached_cast(dtype, once, kDevice); });
  };
  AttentionArgs args = given;
  args.query = cast(args.query);
  args.key = cast(args.key);
  args.value = cast(args.value);
  if (args.attn_bias) args.attn_bias = cast(*args.attn_bias);
  return attention_forward(args);
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, AutocastCPU, m) {
  using namespace xformers::ops;
  m.impl("attention_forward", AttentionForward::entry<forward_autocast<c10::DeviceType::CPU>>);
}

TORCH_LIBRARY_IMPL(xformers, AutocastCUDA, m) {
  using namespace xformers::ops;
  m.impl("attention_forward", AttentionForward::entry<forward_autocast<c10::DeviceType::CUDA>>);
}
