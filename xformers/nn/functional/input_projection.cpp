#include "xformers/nn/functional/input_projection.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/stack.h>

#include "xformers/ops/common/stack.h"

namespace xformers::nn::functional {

std::vector<at::Tensor> input_projection(const InputProjectionArgs& args) {
  const ops::Check check(args.kName);
  const auto& [x, weights, biases] = args;
  const auto count = static_cast<int64_t>(weights.size());
  if (count == 0 || (!biases.empty() && biases.size() != weights.size())) {
    check.fail("biases", std::to_string(biases.size()) + " beside " + std::to_string(count) + " weights",
               "one for each, or none", "give every projection its bias");
  }
  const at::Tensor packed = weights[0].is_contiguous() ? ops::stack_or_none(weights, 0) : at::Tensor();
  if (packed.defined() && packed.is_contiguous()) {
    const at::Tensor view = biases.empty() ? at::Tensor() : ops::stack_or_none(biases, 0);
    const at::Tensor bias = biases.empty() ? at::Tensor() : (view.defined() ? view : at::stack(biases)).flatten();
    const at::Tensor out = at::linear(x, packed.flatten(0, 1), ops::to_optional(bias));
    return ops::unbind(out.unflatten(-1, {count, weights[0].size(0)}), -2);
  }
  std::vector<at::Tensor> result;
  for (int64_t i = 0; i < count; ++i) {
    result.push_back(at::linear(x, weights[i], biases.empty() ? std::nullopt : ops::OptionalTensor(biases[i])));
  }
  return result;
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) { xformers::ops::define<xformers::nn::functional::InputProjectionArgs>(m); }
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  xformers::ops::implement<xformers::nn::functional::input_projection>(m);
}
