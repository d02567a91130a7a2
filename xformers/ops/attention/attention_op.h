// The operator pair as typed functions over one struct of arguments each. The schemas (attention.cpp) give every
// argument that not all calls have a default, and order them by how often they are given: a Python call pays for every
// argument that it passes.
#pragma once

#include <tuple>

#include "xformers/ops/common/op_args.h"

namespace xformers::ops {

struct AttentionArgs {
  at::Tensor query, key, value;  // [batch, seqlen, (groups, heads,) head_dim]; value may have its own head_dim
  OptionalTensor attn_bias{};    // what is added: [batch, (groups, heads,) seqlen_q, seqlen_k], or bool
  c10::SymInt window_left = -1, window_right = -1;  // who sees whom
  bool bottom_right = false;
  OptionalTensor cu_seqlens_q{}, cu_seqlens_k{};  // who is there: int32 [sequences + 1],
  OptionalTensor seqused_k{};                     //   int32 [sequences]
  std::optional<double> scale{};
  double p = 0;
  OptionalTensor philox_state{};  // int64 [2]: seed, offset
  bool need_lse = false;
  OptionalTensor page_table{};  // int32 [sequences, max_pages]: key t of a sequence is in row
  c10::SymInt page_size = 0;    //   page_table[t / page_size] * page_size + t % page_size of key and value
  std::optional<at::ScalarType> out_dtype{};
  int64_t num_splits = 0;                           // parts of the keys that are worked on and merged; 0: chosen
  OptionalTensor k_scale_shift{}, v_scale_shift{};  // int32 [batch, seqlen_k, (groups, heads)]: key and value are fp8
};

// (out, lse, lse_low). out [batch, seqlen_q, (groups, heads,) head_dim_v], contiguous, in out_dtype or the query's
// dtype. lse [batch, (groups, heads,) seqlen_q] (3-D inputs: heads = 1), fp32, fp64 for fp64 inputs; lse_low alike,
// what rounding to lse has lost (params/attention.h): for backward alone, so nothing differentiates it. Both have shape
// [0] where neither need_lse nor a gradient asks for them.
using AttentionResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using AttentionForward =
    Operator<AttentionArgs, AttentionResult, &AttentionArgs::query, &AttentionArgs::key, &AttentionArgs::value,
             &AttentionArgs::attn_bias, &AttentionArgs::window_left, &AttentionArgs::window_right,
             &AttentionArgs::bottom_right, &AttentionArgs::cu_seqlens_q, &AttentionArgs::cu_seqlens_k,
             &AttentionArgs::seqused_k, &AttentionArgs::scale, &AttentionArgs::p, &AttentionArgs::philox_state,
             &AttentionArgs::need_lse, &AttentionArgs::page_table, &AttentionArgs::page_size, &AttentionArgs::out_dtype,
             &AttentionArgs::num_splits, &AttentionArgs::k_scale_shift, &AttentionArgs::v_scale_shift>;

// What backward needs beside the forward's arguments.
struct AttentionGradArgs : AttentionArgs {
  at::Tensor grad_out, out, lse;  // in any floating dtype
  OptionalTensor grad_lse{};      // gradient that reaches lse
  bool need_bias_grad = false;
  OptionalTensor lse_low{};  // of the forward; without it, gradients of rows far from 0 are as good as lse alone
  int64_t stack_dim = 0;     // of attention_backward_stacked
};

template <class Result, auto... kMore>
using AttentionBackwardOf =
    Operator<AttentionGradArgs, Result, &AttentionGradArgs::grad_out, &AttentionArgs::query, &AttentionArgs::key,
             &AttentionArgs::value, &AttentionGradArgs::out, &AttentionGradArgs::lse, &AttentionArgs::attn_bias,
             &AttentionArgs::window_left, &AttentionArgs::window_right, &AttentionArgs::bottom_right,
             &AttentionArgs::cu_seqlens_q, &AttentionArgs::cu_seqlens_k, &AttentionArgs::seqused_k,
             &AttentionArgs::scale, &AttentionArgs::p, &AttentionArgs::philox_state, &AttentionGradArgs::grad_lse,
             &AttentionGradArgs::need_bias_grad, &AttentionArgs::page_table, &AttentionArgs::page_size,
             &AttentionGradArgs::lse_low, kMore...>;

// (dq, dk, dv, dbias) in the shapes of the inputs; dbias has shape [0] unless need_bias_grad.
using AttentionGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using AttentionBackward = AttentionBackwardOf<AttentionGradients>;

// (dqkv, dbias): for query, key and value of one shape, their gradients stacked at stack_dim.
using AttentionStackedGradients = std::tuple<at::Tensor, at::Tensor>;
using AttentionBackwardStacked = AttentionBackwardOf<AttentionStackedGradients, &AttentionGradArgs::stack_dim>;

inline AttentionResult attention_forward(const AttentionArgs& args) {
  static const auto op = AttentionForward::find("xformers::attention_forward");
  return AttentionForward::call(op, args);
}

inline AttentionGradients attention_backward(const AttentionGradArgs& args) {
  static const auto op = AttentionBackward::find("xformers::attention_backward");
  return AttentionBackward::call(op, args);
}

inline AttentionStackedGradients attention_backward_stacked(const AttentionGradArgs& args) {
  static const auto op = AttentionBackwardStacked::find("xformers::attention_backward_stacked");
  return AttentionBackwardStacked::call(op, args);
}

}  // namespace xformers::ops
