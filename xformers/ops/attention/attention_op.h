// The arguments of the attention operators. Every argument that not all calls give has a default, and they are ordered
// by how often they are given: a Python call pays for every argument that it passes.
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::ops {

// (out, lse, lse_low). out [batch, seqlen_q, (groups, heads,) head_dim_v], contiguous, in out_dtype or the query's
// dtype. lse [batch, (groups, heads,) seqlen_q] (3-D inputs: heads = 1), fp32, fp64 for fp64 inputs; lse_low alike,
// what rounding to lse has lost (params/attention.h): for backward alone, so nothing differentiates it. Both have shape
// [0] where neither need_lse nor a gradient asks for them.
using AttentionResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

struct AttentionArgs {
  static constexpr const char* kName = "attention_forward";
  static constexpr const char* kResults[] = {"out", "lse", "lse_low"};
  using Result = AttentionResult;
  at::Tensor query, key, value;  // [batch, seqlen, (groups, heads,) head_dim]; value may have its own head_dim
  // What is added: [batch, (groups, heads,) seqlen_q, seqlen_k], or bool. Packed: [sequences, (groups, heads,) longest
  // seqlen_q or more, longest seqlen_k or more], read at the place inside the sequence; all but the last two may be 1.
  OptionalTensor attn_bias{};
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
  // ScoreModifiers (params/attention.h). The tensors are [(batch or sequences,) (groups,) heads], 3-D inputs having one
  // head: slopes fp32, fp64 for fp64 inputs; sinks likewise, or in the query's dtype.
  double softcap = 0;
  OptionalTensor alibi_slopes{}, sinks{};
  // A block mask (BlockLists, attn_bias/lowered_bias.h); H is 1, the number of groups or of query heads.
  OptionalTensor block_key_offsets{}, block_keys{}, block_query_offsets{}, block_queries{}, block_bits_of{},
      block_bits{};
  int64_t block_q = 0, block_k = 0;

  // Groups of arguments that several operators take.
  using A = AttentionArgs;
  static constexpr auto operands() {
    return std::tuple{arg("query", &A::query), arg("key", &A::key), arg("value", &A::value)};
  }
  static constexpr auto visibility() {
    return std::tuple{arg("attn_bias", &A::attn_bias),       arg("window_left", &A::window_left),
                      arg("window_right", &A::window_right), arg("bottom_right", &A::bottom_right),
                      arg("cu_seqlens_q", &A::cu_seqlens_q), arg("cu_seqlens_k", &A::cu_seqlens_k),
                      arg("seqused_k", &A::seqused_k)};
  }
  static constexpr auto dropout() { return std::tuple{arg("p", &A::p), arg("philox_state", &A::philox_state)}; }
  static constexpr auto pages() {
    return std::tuple{arg("page_table", &A::page_table), arg("page_size", &A::page_size)};
  }
  static constexpr auto quantization() {
    return std::tuple{arg("k_scale_shift", &A::k_scale_shift), arg("v_scale_shift", &A::v_scale_shift)};
  }

  static constexpr auto modifiers() {
    return std::tuple{arg("softcap", &A::softcap), arg("alibi_slopes", &A::alibi_slopes), arg("sinks", &A::sinks)};
  }

  static constexpr auto blocks() {
    return std::tuple{arg("block_key_offsets", &A::block_key_offsets),
                      arg("block_keys", &A::block_keys),
                      arg("block_query_offsets", &A::block_query_offsets),
                      arg("block_queries", &A::block_queries),
                      arg("block_bits_of", &A::block_bits_of),
                      arg("block_bits", &A::block_bits),
                      arg("block_q", &A::block_q),
                      arg("block_k", &A::block_k)};
  }

  static constexpr auto arguments() {
    return std::tuple_cat(operands(), visibility(), std::tuple{arg("scale", &A::scale)}, dropout(),
                          std::tuple{arg("need_lse", &A::need_lse)}, pages(),
                          std::tuple{arg("out_dtype", &A::out_dtype), arg("num_splits", &A::num_splits)},
                          quantization(), modifiers(), blocks());
  }
  void check() const;
  Result empty() const;
};

// (dq, dk, dv, dbias, dslopes, dsinks) in the shapes of the inputs; the last three have shape [0] unless asked for.
using AttentionGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// What backward needs beside the forward's arguments.
struct AttentionGradArgs : AttentionArgs {
  static constexpr const char* kName = "attention_backward";
  static constexpr const char* kResults[] = {"dq", "dk", "dv", "dbias", "dslopes", "dsinks"};
  using Result = AttentionGradients;
  at::Tensor grad_out, out, lse;  // in any floating dtype
  OptionalTensor grad_lse{};      // gradient that reaches lse
  bool need_bias_grad = false;
  OptionalTensor lse_low{};  // of the forward; without it, gradients of rows far from 0 are as good as lse alone
  bool need_slopes_grad = false, need_sinks_grad = false;

  static constexpr auto arguments() {
    using G = AttentionGradArgs;
    return std::tuple_cat(
        std::tuple{arg("grad_out", &G::grad_out)}, operands(), std::tuple{arg("out", &G::out), arg("lse", &G::lse)},
        visibility(), std::tuple{arg("scale", &G::scale)}, dropout(),
        std::tuple{arg("grad_lse", &G::grad_lse), arg("need_bias_grad", &G::need_bias_grad)}, pages(),
        std::tuple{arg("lse_low", &G::lse_low)}, modifiers(),
        std::tuple{arg("need_slopes_grad", &G::need_slopes_grad), arg("need_sinks_grad", &G::need_sinks_grad)},
        blocks());
  }
  void check() const;
  Result empty() const;
  at::Tensor empty_dbias() const {  // in the query's dtype
    return attn_bias ? empty_result(attn_bias->sym_sizes(), query.options(), need_bias_grad)
                     : empty_result({0}, query.options());
  }
  at::Tensor empty_dslopes() const { return empty_like_heads(alibi_slopes, need_slopes_grad); }
  at::Tensor empty_dsinks() const { return empty_like_heads(sinks, need_sinks_grad); }

 private:
  at::Tensor empty_like_heads(const OptionalTensor& numbers, bool wanted) const {
    return numbers ? empty_result(*numbers, wanted) : empty_result({0}, query.options());
  }
};

// (dqkv, dbias, dslopes, dsinks)
using AttentionStackedGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// For query, key and value of one shape: their gradients stacked at stack_dim.
struct AttentionBackwardStacked : AttentionGradArgs {
  static constexpr const char* kName = "attention_backward_stacked";
  static constexpr const char* kResults[] = {"dqkv", "dbias", "dslopes", "dsinks"};
  using Result = AttentionStackedGradients;
  int64_t stack_dim = 0;

  static constexpr auto arguments() {
    return std::tuple_cat(AttentionGradArgs::arguments(),
                          std::tuple{arg("stack_dim", &AttentionBackwardStacked::stack_dim).keyword().required()});
  }
  void check() const;
  Result empty() const;
};

}  // namespace xformers::ops
