// xformers_flash::flash_fwd, flash_bwd and xformers_flash3::flash_fwd, flash_bwd: FlashAttention's interface.
//
// query [batch, seqlen, heads, head_dim], or with cu_seqlens packed [total, heads, head_dim]; key and value may have
// fewer heads, each shared by as many neighbouring query heads. With block_tables key and value are
// [pages, page_size, heads, head_dim]. Causal is aligned at the bottom right, unless top_left. lse [batch, heads,
// seqlen], packed [heads, total]; rng_state int64 [2]. philox_state, raw_lse: see contracts/appearance.h.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "xformers/ops/attention/attention_op.h"
#include "xformers/ops/attention/contracts/appearance.h"
#include "xformers/ops/common/check.h"
#include "xformers/ops/common/random.h"

namespace xformers::ops {
namespace {

const Check kFlash("flash");

at::Tensor with_batch(const at::Tensor& t) { return t.dim() == 3 ? t.unsqueeze(0) : t; }

// Query heads that share one key head become a dimension of their own.
struct Heads {
  c10::SymInt groups, per_group;
  bool shared() const { return per_group != 1; }

  static Heads of(const at::Tensor& query, const at::Tensor& key) {
    const c10::SymInt heads = query.sym_size(-2), groups = key.sym_size(-2);
    if (groups == 0 ? heads != 0 : heads % groups != 0) {
      kFlash.fail("query.heads", c10::str(heads), "a multiple of key.heads, " + c10::str(groups),
                  "every key head is shared by as many query heads");
    }
    return {groups, groups == 0 ? c10::SymInt(1) : heads / groups};
  }
  at::Tensor split(const at::Tensor& t, int64_t dim) const {  // heads at dim -> groups, heads per group
    return shared() ? t.unflatten_symint(dim, {groups, per_group}) : t;
  }
  at::Tensor merge(const at::Tensor& t, int64_t dim) const { return shared() ? t.flatten(dim, dim + 1) : t; }
  at::Tensor repeat(const at::Tensor& t) const {  // [batch, seqlen, groups, head_dim]
    if (!shared()) return t;
    return t.unsqueeze(3).expand_symint({t.sym_size(0), t.sym_size(1), groups, per_group, t.sym_size(3)});
  }
  at::Tensor sum_repeats(const at::Tensor& grad) const { return shared() ? grad.sum(3) : grad; }
};

struct FlashMask {
  bool is_causal = false;
  int64_t window_left = -1, window_right = -1;
  bool top_left = false;
};

void set_mask(AttentionArgs& args, const FlashMask& mask) {
  args.window_left = mask.window_left;
  args.window_right = mask.is_causal ? 0 : mask.window_right;
  args.bottom_right = !mask.top_left;
}

void set_layout(AttentionArgs& args, const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                const OptionalTensor& seqused_k, const OptionalTensor& block_tables) {
  args.cu_seqlens_q = cu_seqlens_q;
  args.seqused_k = seqused_k;
  if (!block_tables) {
    args.cu_seqlens_k = cu_seqlens_k;
    return;
  }
  if (args.key.dim() != 4) {
    kFlash.fail("key", describe(args.key), "[pages, page_size, heads, head_dim] beside block_tables",
                "unflatten the rows of the cache into pages");
  }
  args.page_table = block_tables;
  args.page_size = args.key.sym_size(1);
  args.key = args.key.flatten(0, 1).unsqueeze(0);
  args.value = args.value.flatten(0, 1).unsqueeze(0);
  // Every sequence starts at its first page; cu_seqlens_k only says how long each is.
  if (!seqused_k && cu_seqlens_k) args.seqused_k = cu_seqlens_k->diff();
}

using FlashResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

FlashResult flash_forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                          const OptionalTensor& seqused_k, double p, double softmax_scale, const FlashMask& mask,
                          const OptionalTensor& block_tables, const Appearance& appearance) {
  const Heads heads = Heads::of(query, key);
  const bool packed = query.dim() == 3;
  AttentionArgs args{.query = heads.split(with_batch(query), 2), .key = key, .value = value, .scale = softmax_scale};
  set_layout(args, cu_seqlens_q, cu_seqlens_k, seqused_k, block_tables);
  args.key = heads.repeat(with_batch(args.key));
  args.value = heads.repeat(with_batch(args.value));
  set_mask(args, mask);
  args.p = p;
  args.philox_state = appearance.philox_state_or_draw(p, query.device());
  const at::Tensor rng_state = appearance.raw_lse
                                   ? at::empty({0}, query.options().dtype(at::kLong))
                                   : args.philox_state.value_or(at::zeros({2}, query.options().dtype(at::kLong)));
  args.need_lse = true;
  auto [out, lse, lse_low] = call(args);
  if (appearance.raw_lse) return {out, at::stack({lse, lse_low}), rng_state};
  out = heads.merge(out, 2);
  lse = heads.merge(lse, 1);
  return {packed ? out.squeeze(0) : out, packed ? lse.squeeze(0) : lse, rng_state};
}

AttentionGradArgs flash_grad_args(const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key,
                                  const at::Tensor& value, const at::Tensor& out, const at::Tensor& lse,
                                  const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k, double p,
                                  double softmax_scale, const FlashMask& mask, const OptionalTensor& rng_state) {
  const Heads heads = Heads::of(query, key);
  AttentionGradArgs args;
  args.query = heads.split(with_batch(query), 2);
  args.key = heads.repeat(with_batch(key));
  args.value = heads.repeat(with_batch(value));
  args.grad_out = heads.split(with_batch(grad), 2);
  args.out = heads.split(with_batch(out), 2);
  args.lse = heads.split(lse.dim() == 2 ? lse.unsqueeze(0) : lse, 1);
  args.cu_seqlens_q = cu_seqlens_q;
  args.cu_seqlens_k = cu_seqlens_k;
  args.scale = softmax_scale;
  set_mask(args, mask);
  args.p = p;
  if (p != 0) args.philox_state = rng_state;
  return args;
}

FlashResult flash_backward(bool grads_share_storage, const at::Tensor& query, const at::Tensor& key,
                           const AttentionGradArgs& given) {
  const bool packed = query.dim() == 3;
  const auto unbatched = [&](const at::Tensor& t) { return packed ? t.squeeze(0) : t; };
  if (grads_share_storage) {  // [batch, seqlen, 3, heads, head_dim]
    const at::Tensor stacked = std::get<0>(call(AttentionBackwardStacked{given, /*stack_dim=*/2}));
    return {unbatched(stacked.select(2, 0)), unbatched(stacked.select(2, 1)), unbatched(stacked.select(2, 2))};
  }
  const Heads heads = Heads::of(query, key);
  const auto [dq, dk, dv, dbias, dslopes, dsinks] = call(given);
  return {unbatched(heads.merge(dq, 2)), unbatched(heads.sum_repeats(dk)), unbatched(heads.sum_repeats(dv))};
}

// The longest lengths and return_softmax are hints that our kernels have no use for.
FlashResult flash_fwd(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                      const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                      const OptionalTensor& seqused_k, c10::SymInt /*max_seqlen_q*/, c10::SymInt /*max_seqlen_k*/,
                      double p, double softmax_scale, bool is_causal, int64_t window_left, int64_t window_right,
                      bool /*return_softmax*/, const OptionalTensor& block_tables, bool top_left,
                      const OptionalTensor& philox_state, bool raw_lse) {
  return flash_forward(query, key, value, cu_seqlens_q, cu_seqlens_k, seqused_k, p, softmax_scale,
                       {is_causal, window_left, window_right, top_left}, block_tables, {philox_state, raw_lse});
}

FlashResult flash_bwd(bool grads_share_storage, const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key,
                      const at::Tensor& value, const at::Tensor& out, const at::Tensor& lse,
                      const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                      c10::SymInt /*max_seqlen_q*/, c10::SymInt /*max_seqlen_k*/, double p, double softmax_scale,
                      bool is_causal, int64_t window_left, int64_t window_right, const OptionalTensor& rng_state) {
  return flash_backward(grads_share_storage, query, key,
                        flash_grad_args(grad, query, key, value, out, lse, cu_seqlens_q, cu_seqlens_k, p, softmax_scale,
                                        {is_causal, window_left, window_right}, rng_state));
}

FlashResult flash3_fwd(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                       const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                       const OptionalTensor& seqused_k, c10::SymInt /*max_seqlen_q*/, c10::SymInt /*max_seqlen_k*/,
                       double p, double softmax_scale, bool is_causal, bool top_left,
                       const OptionalTensor& philox_state, bool raw_lse) {
  return flash_forward(query, key, value, cu_seqlens_q, cu_seqlens_k, seqused_k, p, softmax_scale,
                       {.is_causal = is_causal, .top_left = top_left}, std::nullopt, {philox_state, raw_lse});
}

FlashResult flash3_bwd(bool grads_share_storage, const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key,
                       const at::Tensor& value, const at::Tensor& out, const at::Tensor& lse,
                       const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                       c10::SymInt /*max_seqlen_q*/, c10::SymInt /*max_seqlen_k*/, double softmax_scale,
                       bool is_causal) {
  return flash_backward(grads_share_storage, query, key,
                        flash_grad_args(grad, query, key, value, out, lse, cu_seqlens_q, cu_seqlens_k, /*p=*/0,
                                        softmax_scale, {.is_causal = is_causal}, std::nullopt));
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers_flash, m) {
  m.def(
      "flash_fwd(Tensor query, Tensor key, Tensor value, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, "
      "Tensor? seqused_k, SymInt max_seqlen_q, SymInt max_seqlen_k, float p, float softmax_scale, bool is_causal, "
      "int window_left, int window_right, bool return_softmax, Tensor? block_tables=None, *, bool top_left=False, "
      "Tensor? philox_state=None, bool raw_lse=False) -> "
      "(Tensor out, Tensor lse, Tensor rng_state)",
      {at::Tag::nondeterministic_seeded, at::Tag::pt2_compliant_tag});
  m.def(
      "flash_bwd(bool grads_share_storage, Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor "
      "lse, "
      "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, float p, "
      "float softmax_scale, bool is_causal, int window_left, int window_right, Tensor? rng_state) -> "
      "(Tensor dq, Tensor dk, Tensor dv)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_FRAGMENT(xformers_flash3, m) {
  m.def(
      "flash_fwd(Tensor query, Tensor key, Tensor value, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, "
      "Tensor? seqused_k, SymInt max_seqlen_q, SymInt max_seqlen_k, float p, float softmax_scale, bool is_causal, *, "
      "bool top_left=False, Tensor? philox_state=None, bool raw_lse=False) -> (Tensor out, Tensor lse, Tensor "
      "rng_state)",
      {at::Tag::nondeterministic_seeded, at::Tag::pt2_compliant_tag});
  m.def(
      "flash_bwd(bool grads_share_storage, Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor "
      "lse, "
      "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, float softmax_scale, "
      "bool is_causal) -> (Tensor dq, Tensor dk, Tensor dv)",
      {at::Tag::pt2_compliant_tag});
}

// Gradients are an operator here, as in upstream: autograd goes through memory_efficient_attention.
TORCH_LIBRARY_IMPL(xformers_flash, Autograd, m) {
  for (const char* name : {"flash_fwd", "flash_bwd"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}
TORCH_LIBRARY_IMPL(xformers_flash3, Autograd, m) {
  for (const char* name : {"flash_fwd", "flash_bwd"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}
TORCH_LIBRARY_IMPL(xformers_flash, CompositeExplicitAutograd, m) {
  m.impl("flash_fwd", xformers::ops::flash_fwd);
  m.impl("flash_bwd", xformers::ops::flash_bwd);
}
TORCH_LIBRARY_IMPL(xformers_flash3, CompositeExplicitAutograd, m) {
  m.impl("flash_fwd", xformers::ops::flash3_fwd);
  m.impl("flash_bwd", xformers::ops::flash3_bwd);
}
