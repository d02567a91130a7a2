// Gradients of attention_forward, and autocast. Calls that need no gradient leave no trace of it.
#include <ATen/ops/zeros_like.h>
#include <c10/util/strides.h>

#include <algorithm>
#include <array>

#include "xformers/ops/attention/attention_check.h"
#include "xformers/ops/attention/contracts/appearance.h"
#include "xformers/ops/common/expanded.h"
#include "xformers/ops/common/operator_node.h"
#include "xformers/ops/common/stack.h"

namespace xformers::ops {
namespace {

// The dimension at which query, key and value lie stacked in one tensor ([batch, seqlen, 3, heads, head_dim], say), or
// -1. Their gradients then go into one such tensor, so that whatever took the three apart needs no copy.
int64_t stack_dim_of(const AttentionArgs& args) {
  const std::array<at::Tensor, 3> tensors{args.query, args.key, args.value};
  if (!std::all_of(tensors.begin(), tensors.end(), is_eager) || args.seqused_k) return -1;
  if (!args.query.is_alias_of(args.key)) return -1;
  for (int64_t dim = 0; dim < args.query.dim(); ++dim) {
    const at::DimVector strides = get_stack_strides(tensors, dim);
    if (strides.empty()) return -1;
    at::DimVector sizes(args.query.sizes());
    sizes.insert(sizes.begin() + dim, 3);
    if (c10::contiguous_strides(sizes) == strides) return dim;
  }
  return -1;
}

// The arguments of the forward and its results.
struct AttentionKept : AttentionArgs {
  static constexpr const char* kNode = "XformersAttentionBackward";
  at::Tensor out, lse, lse_low;
  static constexpr auto members() {
    using K = AttentionKept;
    return std::tuple_cat(members_of<AttentionArgs>(), std::tuple{&K::out, &K::lse, &K::lse_low});
  }

  // From those of out and lse, each possibly undefined: of query, key, value, attn_bias, alibi_slopes and sinks.
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    AttentionBackwardStacked args;
    static_cast<AttentionArgs&>(args) = *this;
    args.grad_out = grads[0].defined() ? grads[0] : at::zeros_like(out);
    args.out = out;
    args.lse = lse;
    args.lse_low = lse_low;
    args.grad_lse = to_optional(grads[1]);
    args.need_bias_grad = wanted[3];
    args.need_slopes_grad = wanted[4];
    args.need_sinks_grad = wanted[5];
    args.stack_dim = stack_dim_of(args);
    variable_list result(6);
    if (args.stack_dim < 0) {
      std::tie(result[0], result[1], result[2], result[3], result[4], result[5]) =
          call(static_cast<const AttentionGradArgs&>(args));
    } else {
      at::Tensor stacked;
      std::tie(stacked, result[3], result[4], result[5]) = call(args);
      for (int i = 0; i < 3; ++i) result[i] = stacked.select(args.stack_dim, i);
    }
    for (int i = 3; i < 6; ++i) {
      if (!wanted[i]) result[i] = at::Tensor();
    }
    return result;
  }
};

AttentionResult forward_autograd(const AttentionArgs& args) {
  check_same_device(args);  // here, since below the dispatcher has already chosen one of the devices
  const auto node =
      record<AttentionKept>(args.query, args.key, args.value, args.attn_bias, args.alibi_slopes, args.sinks);
  if (!node) return below_autograd(args);
  TORCH_CHECK_NOT_IMPLEMENTED(!is_quantized(args),
                              "attention: an input requires grad beside quantised key and value (int32), expected none "
                              "that does.  Fix: call under torch.no_grad(), or dequantise key and value.");
  AttentionKept kept{args, {}, {}, {}};
  kept.need_lse = true;
  auto [out, lse, lse_low] = forward_by_name(kept);
  kept.out = out = with_history(std::move(out), node);
  kept.lse = lse = with_history(std::move(lse), node);
  kept.lse_low = lse_low;
  node->keep(std::move(kept));
  return {out, lse, lse_low};
}

// query, key, value, a score bias and sinks in the region's dtype (fp64, masks, quantised keys, slopes and sinks of
// fp32 stay as they are).
void attention_autocast(AttentionArgs& args, const AutocastRegion& region) {
  const auto cast = [&](const at::Tensor& t) {
    if (t.scalar_type() == region.dtype()) return t;
    return map_unexpanded(t, t.dim(), [&](const at::Tensor& once) { return region.cast(once, region.dtype()); });
  };
  args.query = cast(args.query);
  args.key = cast(args.key);
  args.value = cast(args.value);
  if (args.attn_bias) args.attn_bias = cast(*args.attn_bias);
  if (args.sinks && args.sinks->scalar_type() != at::kFloat) args.sinks = cast(*args.sinks);
}

// What attention_forward will see of these, for callers that ask first who takes them.
struct UnderAutocast : AttentionArgs {
  static constexpr const char* kName = "attention_under_autocast";
  static constexpr const char* kResults[] = {"query", "key", "value", "attn_bias"};
  using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
  static constexpr auto arguments() { return std::tuple_cat(operands(), std::tuple{arg("attn_bias", &A::attn_bias)}); }
  void empty() const = delete;
};

UnderAutocast::Result as_given(const UnderAutocast& args) {
  return {args.query, args.key, args.value, args.attn_bias.value_or(at::Tensor())};
}

void under_autocast(UnderAutocast& args, const AutocastRegion& region) { attention_autocast(args, region); }

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::ops;
  implement<forward_autograd>(m);
  implement_no_gradients<AttentionGradArgs, AttentionBackwardStacked>(m);  // refuse double backward
}

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<UnderAutocast>(m);
  implement_autocast<attention_autocast>(m);
  implement_autocast<under_autocast>(m);
}

TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) { xformers::ops::implement<xformers::ops::as_given>(m); }
