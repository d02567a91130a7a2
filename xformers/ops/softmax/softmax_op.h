// The arguments of the softmax operators.
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::ops {

void check_softmax(const char* where, const at::Tensor& x, const OptionalTensor& mask, bool causal);

template <bool kLog>
struct SoftmaxOf {
  static constexpr const char* kName = kLog ? "log_softmax" : "softmax";
  using Result = at::Tensor;
  at::Tensor x;
  OptionalTensor mask{};
  bool causal = false;

  static constexpr auto arguments() {
    return std::tuple{arg("x", &SoftmaxOf::x), arg("mask", &SoftmaxOf::mask), arg("causal", &SoftmaxOf::causal)};
  }
  void check() const { check_softmax(kName, x, mask, causal); }
  at::Tensor empty() const { return empty_result(x); }
};
using Softmax = SoftmaxOf<false>;
using LogSoftmax = SoftmaxOf<true>;

struct SoftmaxBackward {
  static constexpr const char* kName = "softmax_backward";
  using Result = at::Tensor;
  at::Tensor grad_out, out;
  bool causal = false, log = false;

  static constexpr auto arguments() {
    return std::tuple{arg("grad_out", &SoftmaxBackward::grad_out), arg("out", &SoftmaxBackward::out),
                      arg("causal", &SoftmaxBackward::causal), arg("log", &SoftmaxBackward::log)};
  }
  void check() const;
  at::Tensor empty() const { return empty_result(out); }
};

}  // namespace xformers::ops
