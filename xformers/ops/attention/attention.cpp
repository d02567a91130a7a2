// Schemas of the attention operators, and the public functions.
#include "xformers/ops/attention/attention.h"

#include <ATen/ops/stack.h>

#include "xformers/ops/attention/attention_check.h"
#include "xformers/ops/common/random.h"

namespace xformers::ops {
namespace {

AttentionResult attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const AttentionBias& attn_bias, double p, std::optional<double> scale,
                          std::optional<at::ScalarType> out_dtype, bool need_lse, const ScoreOptions& options) {
  const LoweredBias& bias = attn_bias.lowered();
  if (query.dim() == 3 && !bias.takes_3d) {
    AttentionCheck(query, key, value)
        .fail("query.ndim", "3 beside a " + std::string(bias.name), "4 or 5",
              "use [batch, seqlen, heads, head_dim]; 3-D inputs take a tensor or a LowerTriangularMask");
  }
  const auto on_device = [&](const at::Tensor& t) {
    return to_optional(t.defined() && !bias.device_given ? t.to(query.device(), /*non_blocking=*/true) : t);
  };
  return call(AttentionArgs{.query = query,
                            .key = key,
                            .value = value,
                            .attn_bias = to_optional(bias.scores),
                            .window_left = bias.window_left,
                            .window_right = bias.window_right,
                            .bottom_right = bias.bottom_right,
                            .cu_seqlens_q = on_device(bias.cu_seqlens_q),
                            .cu_seqlens_k = on_device(bias.cu_seqlens_k),
                            .seqused_k = on_device(bias.seqused_k),
                            .scale = scale,
                            .p = p,
                            .philox_state = draw_dropout_state(p, query.device()),
                            .need_lse = need_lse,
                            .page_table = to_optional(bias.page_table),
                            .page_size = bias.page_size,
                            .out_dtype = out_dtype,
                            .softcap = options.softcap,
                            .alibi_slopes = to_optional(options.alibi_slopes),
                            .sinks = to_optional(options.sinks),
                            .block_key_offsets = on_device(bias.blocks.key_offsets),
                            .block_keys = on_device(bias.blocks.key_blocks),
                            .block_query_offsets = on_device(bias.blocks.query_offsets),
                            .block_queries = on_device(bias.blocks.query_blocks),
                            .block_bits_of = on_device(bias.blocks.bits_of),
                            .block_bits = on_device(bias.blocks.bits),
                            .block_q = bias.blocks.block_q,
                            .block_k = bias.blocks.block_k});
}

std::tuple<at::Tensor, at::Tensor> out_and_lse(const AttentionResult& result) {
  return {std::get<0>(result), std::get<1>(result)};
}

// On devices whose backward doesn't write one tensor: with a copy.
AttentionStackedGradients backward_and_stack(const AttentionBackwardStacked& args) {
  args.check();
  const auto [dq, dk, dv, dbias, dslopes, dsinks] = call(static_cast<const AttentionGradArgs&>(args));
  return {at::stack({dq, dk, dv}, args.stack_dim), dbias, dslopes, dsinks};
}

}  // namespace

at::Tensor memory_efficient_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                      const AttentionBias& attn_bias, double p, std::optional<double> scale,
                                      std::optional<at::ScalarType> out_dtype, const ScoreOptions& options) {
  return std::get<0>(attention(query, key, value, attn_bias, p, scale, out_dtype, /*need_lse=*/false, options));
}

std::tuple<at::Tensor, at::Tensor> memory_efficient_attention_with_lse(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const AttentionBias& attn_bias, double p,
    std::optional<double> scale, std::optional<at::ScalarType> out_dtype, const ScoreOptions& options) {
  return out_and_lse(attention(query, key, value, attn_bias, p, scale, out_dtype, /*need_lse=*/true, options));
}

std::tuple<at::Tensor, at::Tensor> memory_efficient_attention_partial(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const AttentionBias& attn_bias,
    std::optional<double> scale, std::optional<at::ScalarType> out_dtype, const ScoreOptions& options) {
  if (options.sinks.defined()) {
    AttentionCheck(query, key, value)
        .fail("sinks", describe(options.sinks) + " beside partial attention", "None: they belong to all keys",
              "add them once, when merging: merge_attentions({out, zeros}, {lse, sinks})");
  }
  return out_and_lse(attention(query, key, value, attn_bias, /*p=*/0, scale, out_dtype.value_or(compute_dtype(query)),
                               /*need_lse=*/true, options));
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<AttentionArgs, AttentionGradArgs, AttentionBackwardStacked>(m);
}

TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  xformers::ops::implement<xformers::ops::backward_and_stack>(m);
}
