// The arguments of the operators of experts that have gradients of their own.
#pragma once

#include "xformers/ops/bias_act_dropout/bias_act_dropout_op.h"

namespace xformers::ops {

struct ExpertsGather {
  static constexpr const char* kName = "experts_gather";
  using Result = at::Tensor;
  at::Tensor x, tokens, slots;

  static constexpr auto arguments() {
    using A = ExpertsGather;
    return std::tuple{arg("x", &A::x), arg("tokens", &A::tokens), arg("slots", &A::slots)};
  }
  void check() const;
  at::Tensor empty() const { return empty_result({tokens.sym_size(0), x.sym_size(1)}, x.options()); }
};

struct ExpertsCombine {
  static constexpr const char* kName = "experts_combine";
  using Result = at::Tensor;
  at::Tensor y, tokens, slots;
  OptionalTensor weights{};

  static constexpr auto arguments() {
    using A = ExpertsCombine;
    return std::tuple{arg("y", &A::y), arg("tokens", &A::tokens), arg("slots", &A::slots), arg("weights", &A::weights)};
  }
  void check() const;
  at::Tensor empty() const { return empty_result({slots.sym_size(0), y.sym_size(1)}, y.options()); }
};

struct ExpertsCombineBackward {
  static constexpr const char* kName = "experts_combine_backward";
  static constexpr const char* kResults[] = {"dy", "dweights"};  // shape [0] where not needed
  using Result = std::tuple<at::Tensor, at::Tensor>;
  at::Tensor grad_out, y, tokens, slots, weights;
  bool need_dy = true, need_dweights = true;

  static constexpr auto arguments() {
    using A = ExpertsCombineBackward;
    return std::tuple{arg("grad_out", &A::grad_out),
                      arg("y", &A::y),
                      arg("tokens", &A::tokens),
                      arg("slots", &A::slots),
                      arg("weights", &A::weights),
                      arg("need_dy", &A::need_dy),
                      arg("need_dweights", &A::need_dweights)};
  }
  void check() const {}
  Result empty() const { return {empty_result(y, need_dy), empty_result(weights, need_dweights)}; }
};

// The lists hold one tensor per expert; those of biases may be empty.
struct ExpertsMlp {
  static constexpr const char* kName = "experts_mlp_inner";
  using Result = at::Tensor;
  at::Tensor x, counts;
  at::TensorList w1, b1, w2, b2;
  ActivationName activation{};
  double p = 0;
  OptionalTensor philox_state{};

  template <class A>
  static constexpr auto arguments_of() {
    return std::tuple{arg("x", &A::x),
                      arg("counts", &A::counts),
                      arg("w1", &A::w1),
                      arg("b1", &A::b1),
                      arg("w2", &A::w2),
                      arg("b2", &A::b2),
                      arg("activation", &A::activation),
                      arg("p", &A::p),
                      arg("philox_state", &A::philox_state)};
  }
  static constexpr auto arguments() { return arguments_of<ExpertsMlp>(); }
  void check() const;
  at::Tensor empty_out() const { return empty_result({x.sym_size(0), w2[0].sym_size(0)}, x.options()); }
  at::Tensor empty() const { return empty_out(); }
};

// Also returns the products with w1, z [rows, hidden].
struct ExpertsMlpForward : ExpertsMlp {
  static constexpr const char* kName = "experts_mlp_forward";
  static constexpr const char* kResults[] = {"out", "z"};
  using Result = std::tuple<at::Tensor, at::Tensor>;
  Result empty() const { return {empty_out(), empty_result({x.sym_size(0), w1[0].sym_size(0)}, x.options())}; }
};

// Returns dx, then one tensor for each of w1, b1, w2, b2.
struct ExpertsMlpBackward : ExpertsMlp {
  static constexpr const char* kName = "experts_mlp_backward";
  using Result = std::vector<at::Tensor>;
  at::Tensor grad_out, z;

  static constexpr auto arguments() {
    using A = ExpertsMlpBackward;
    return std::tuple_cat(std::tuple{arg("grad_out", &A::grad_out), arg("z", &A::z)}, arguments_of<A>());
  }
  Result empty() const {
    Result result{empty_result(x)};
    for (at::TensorList list : {w1, b1, w2, b2}) {
      for (const at::Tensor& t : list) result.push_back(empty_result(t));
    }
    return result;
  }
};

}  // namespace xformers::ops
