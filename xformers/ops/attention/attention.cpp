// Schema of the attention operators, and the public functions.
#include "xformers/ops/attention/attention.h"

#include <torch/library.h>

#include "xformers/ops/attention/attention_op.h"
#include "xformers/ops/common/random.h"
#include "xformers/ops/common/tensor_check.h"

namespace xformers::ops {
namespace {

std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                             const AttentionBias& attn_bias, double p, std::optional<double> scale,
                                             bool need_lse) {
  const LoweredBias& bias = attn_bias.lowered();
  if (query.dim() == 3 && !bias.takes_3d) {
    TensorCheck("attention", query, key, value)
        .fail("query.ndim", "3 beside a " + std::string(bias.name), "4 or 5",
              "use [batch, seqlen, heads, head_dim]; 3-D inputs take a tensor or a LowerTriangularMask");
  }
  const auto optional = [](const at::Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; };
  const auto on_device = [&](const at::Tensor& t) {
    return t.defined() && !bias.device_given ? OptionalTensor(t.to(query.device())) : optional(t);
  };
  const bool drops = p > 0 && p <= 1;  // the operator refuses any other p but 0
  const OptionalTensor philox_state = drops ? OptionalTensor(draw_philox_state()) : std::nullopt;
  return attention_forward_op().call(query, key, value, optional(bias.scores), bias.window_left, bias.window_right,
                                     bias.bottom_right, on_device(bias.cu_seqlens_q), on_device(bias.cu_seqlens_k),
                                     on_device(bias.seqused_k), scale, p, philox_state, need_lse);
}

}  // namespace

at::Tensor memory_efficient_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                      const AttentionBias& attn_bias, double p, std::optional<double> scale) {
  return std::get<0>(attention(query, key, value, attn_bias, p, scale, /*need_lse=*/false));
}

std::tuple<at::Tensor, at::Tensor> memory_efficient_attention_with_lse(const at::Tensor& query, const at::Tensor& key,
                                                                       const at::Tensor& value,
                                                                       const AttentionBias& attn_bias, double p,
                                                                       std::optional<double> scale) {
  return attention(query, key, value, attn_bias, p, scale, /*need_lse=*/true);
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def(
      "attention_forward(Tensor query, Tensor key, Tensor value, Tensor? attn_bias=None, SymInt window_left=-1, "
      "SymInt window_right=-1, bool bottom_right=False, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, "
      "Tensor? seqused_k=None, float? scale=None, float p=0.0, Tensor? philox_state=None, bool need_lse=False) -> "
      "(Tensor out, Tensor lse)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, "
      "Tensor? attn_bias=None, SymInt window_left=-1, SymInt window_right=-1, bool bottom_right=False, "
      "Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, Tensor? seqused_k=None, float? scale=None, float p=0.0, "
      "Tensor? philox_state=None, Tensor? grad_lse=None, bool need_bias_grad=False) -> "
      "(Tensor dq, Tensor dk, Tensor dv, Tensor dbias)",
      {at::Tag::pt2_compliant_tag});
}
