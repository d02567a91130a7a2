// Projections of one tensor by several weights, such as those of queries, keys and values, as one product.
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::nn::functional {

struct InputProjectionArgs {
  static constexpr const char* kName = "input_projection";
  using Result = std::vector<at::Tensor>;
  at::Tensor x;              // [..., in]
  at::TensorList weights{};  // [out, in], all of one shape
  at::TensorList biases{};   // as many of [out], or none

  static constexpr auto arguments() {
    using A = InputProjectionArgs;
    return std::tuple{ops::arg("x", &A::x), ops::arg("weights", &A::weights), ops::arg("biases", &A::biases)};
  }
};

// x weights_i^T + biases_i, [..., out] each. Weights that lie one behind the other in memory, which their addresses
// tell, are one matrix: one product, of whose result the outputs are views, and whose gradient is one product too.
// Where something has moved them, and while a graph is compiled: a product each.
std::vector<at::Tensor> input_projection(const InputProjectionArgs& args);

}  // namespace xformers::nn::functional
