#include "xformers/ops/attention/contracts/appearance.h"

#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <cmath>

#include "xformers/ops/attention/contracts/contract.h"
#include "xformers/ops/common/operator_node.h"

namespace xformers::ops {
namespace {

bool is_int(const c10::SymInt& value, int64_t expected) { return value.maybe_as_int() == expected; }

// What both contracts can say; arguments that they have no place for are as by default.
bool can_be_named(const AttentionArgs& args) {
  return args.query.dim() > 3 && !args.page_table && !args.out_dtype && !args.num_splits && !args.k_scale_shift &&
         !args.v_scale_shift && args.window_left.maybe_as_int() && args.window_right.maybe_as_int() &&
         args.softcap == 0 && !args.alibi_slopes && !args.sinks && !args.block_key_offsets &&
         !(args.attn_bias && args.cu_seqlens_q);
}

bool flash_takes(const AttentionArgs& args) {
  const auto head_dim = args.query.sym_size(-1).maybe_as_int(), head_dim_v = args.value.sym_size(-1).maybe_as_int();
  return c10::isReducedFloatingType(args.query.scalar_type()) && !args.attn_bias && head_dim &&
         head_dim == head_dim_v && *head_dim <= find_contract("fa2F").max_head_dim;
}

// No mask, or a causal one, narrowed or not.
bool cutlass_takes(const AttentionArgs& args) {
  return args.query.scalar_type() != at::kDouble &&
         (is_int(args.window_right, 0) || (is_int(args.window_right, -1) && is_int(args.window_left, -1)));
}

template <class Result>
AttentionResult with_parts_of_lse(const Result& result) {
  const at::Tensor& lse = std::get<1>(result);
  return {std::get<0>(result), lse.select(0, 0), lse.select(0, 1)};
}

double scale_of(const AttentionArgs& args) {
  return args.scale ? *args.scale : 1 / std::sqrt(static_cast<double>(args.query.sym_size(-1).expect_int()));
}

template <class Function>
const c10::TypedOperatorHandle<Function>& handle(const char* name) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Function>();
  return op;
}

AttentionResult as_flash(const AttentionArgs& args) {
  using Function = std::tuple<at::Tensor, at::Tensor, at::Tensor>(
      const at::Tensor&, const at::Tensor&, const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
      const OptionalTensor&, c10::SymInt, c10::SymInt, double, double, bool, int64_t, int64_t, bool,
      const OptionalTensor&, bool, const OptionalTensor&, bool);
  return with_parts_of_lse(
      handle<Function>("xformers_flash::flash_fwd")
          .call(args.query, args.key, args.value, args.cu_seqlens_q, args.cu_seqlens_k, args.seqused_k,
                args.query.sym_size(1), args.key.sym_size(1), args.p, scale_of(args), is_int(args.window_right, 0),
                args.window_left.expect_int(), args.window_right.expect_int(), /*return_softmax=*/false,
                /*block_tables=*/std::nullopt, /*top_left=*/!args.bottom_right, args.philox_state, /*raw_lse=*/true));
}

AttentionResult as_cutlass(const AttentionArgs& args) {
  using Function = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, c10::SymInt, c10::SymInt>(
      const at::Tensor&, const at::Tensor&, const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
      const OptionalTensor&, std::optional<c10::SymInt>, std::optional<c10::SymInt>, double, int64_t, bool,
      std::optional<double>, const OptionalTensor&, std::optional<int64_t>, const OptionalTensor&, bool);
  const int64_t window = args.window_left.expect_int() + 1;
  return with_parts_of_lse(handle<Function>("xformers::efficient_attention_forward_cutlass")
                               .call(args.query, args.key, args.value, args.attn_bias, args.cu_seqlens_q,
                                     args.cu_seqlens_k, args.query.sym_size(1), args.key.sym_size(1), args.p,
                                     is_int(args.window_right, 0) ? 1 + int64_t{args.bottom_right} : 0,
                                     /*compute_log_sumexp=*/true, args.scale, args.seqused_k,
                                     window > 0 ? std::optional(window) : std::nullopt, args.philox_state,
                                     /*raw_lse=*/true));
}

}  // namespace

AttentionResult forward_by_name(const AttentionArgs& args) {
  if (!c10::impl::dispatch_mode_enabled() || !args.need_lse || !can_be_named(args)) return below_autograd(args);
  const at::AutoDispatchBelowADInplaceOrView guard;
  if (flash_takes(args)) return as_flash(args);
  return cutlass_takes(args) ? as_cutlass(args) : call(args);
}

}  // namespace xformers::ops
