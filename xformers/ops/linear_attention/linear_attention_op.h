// The arguments of the linear-attention operators.
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::ops {

struct LinearAttention {
  static constexpr const char* kName = "linear_attention";
  static constexpr const char* kResults[] = {"out", "denominator", "final_state"};
  using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
  at::Tensor q, k, v;
  OptionalTensor omega{}, log_decay{}, state{}, cu_seqlens{};
  bool paired = false, causal = false, normalize = true, return_state = false;

  static constexpr auto arguments() {
    using A = LinearAttention;
    return std::tuple{arg("q", &A::q),
                      arg("k", &A::k),
                      arg("v", &A::v),
                      arg("omega", &A::omega),
                      arg("log_decay", &A::log_decay),
                      arg("state", &A::state),
                      arg("cu_seqlens", &A::cu_seqlens),
                      arg("paired", &A::paired),
                      arg("causal", &A::causal),
                      arg("normalize", &A::normalize),
                      arg("return_state", &A::return_state)};
  }
  c10::SymInt features() const { return omega ? omega->sym_size(1) * (paired ? 2 : 1) : q.sym_size(3); }
  c10::SymDimVector row_sizes() const;    // batch, seqlen_q, heads
  c10::SymDimVector out_sizes() const;    // and head_dim_v
  c10::SymDimVector state_sizes() const;  // sequences, heads, features, head_dim_v (+ 1)
  void check() const;
  Result empty() const;
};

// denominator: of forward, in units of its own. grad_state: that of final_state.
struct LinearAttentionBackward : LinearAttention {
  static constexpr const char* kName = "linear_attention_backward";
  static constexpr const char* kResults[] = {"dq", "dk", "dv", "dlog_decay", "dstate"};
  using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
  at::Tensor grad_out, out, denominator;
  OptionalTensor grad_state{};

  static constexpr auto arguments() {
    using A = LinearAttentionBackward;
    return std::tuple_cat(
        std::tuple{arg("grad_out", &A::grad_out)}, LinearAttention::arguments(),
        std::tuple{arg("out", &A::out).keyword().required(), arg("denominator", &A::denominator).keyword().required(),
                   arg("grad_state", &A::grad_state).keyword()});
  }
  void check() const;
  Result empty() const;
};

}  // namespace xformers::ops
