// The operator pair as typed functions. Arguments after the tensors that every call has are ordered by how often they
// are given, and the schema has a default for each (attention.cpp): a Python call pays for every argument that it
// passes.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <tuple>

namespace xformers::ops {

using OptionalTensor = std::optional<at::Tensor>;

// (out, lse). out [batch, seqlen_q, (groups, heads,) head_dim_v], contiguous. lse [batch, (groups, heads,) seqlen_q]
// (3-D inputs: heads = 1), fp32, fp64 for fp64 inputs; shape [0] where neither need_lse nor a gradient asks for it.
using AttentionForward = std::tuple<at::Tensor, at::Tensor>(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& attn_bias,                                            // what is added
    c10::SymInt window_left, c10::SymInt window_right, bool bottom_right,       // who sees whom
    const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,     // who is there
    const OptionalTensor& seqused_k,                                            //
    std::optional<double> scale, double p, const OptionalTensor& philox_state,  //
    bool need_lse);

// (dq, dk, dv, dbias) in the shapes of the inputs; dbias has shape [0] unless need_bias_grad.
using AttentionBackward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>(
    const at::Tensor& grad_out, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& out, const at::Tensor& lse,                               //
    const OptionalTensor& attn_bias,                                            //
    c10::SymInt window_left, c10::SymInt window_right, bool bottom_right,       //
    const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,     //
    const OptionalTensor& seqused_k,                                            //
    std::optional<double> scale, double p, const OptionalTensor& philox_state,  //
    const OptionalTensor& grad_lse, bool need_bias_grad);

inline const c10::TypedOperatorHandle<AttentionForward>& attention_forward_op() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("xformers::attention_forward", "").typed<AttentionForward>();
  return op;
}

inline const c10::TypedOperatorHandle<AttentionBackward>& attention_backward_op() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("xformers::attention_backward", "").typed<AttentionBackward>();
  return op;
}

}  // namespace xformers::ops
