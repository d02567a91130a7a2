#include "benchmarks/blocks/row_builder.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

namespace xformers::bench {
namespace {

Side forward_side(const char* name, const Compute& compute, const Tensors& inputs) {
  return {name, [=] {
            const at::NoGradGuard no_grad;
            compute(inputs);
          }};
}

// The gradient of one kept graph in all inputs.
Side backward_side(const char* name, const Compute& compute, const Tensors& values) {
  Tensors inputs;
  for (const Tensor& value : values) inputs.push_back(value.detach().clone().requires_grad_());
  const Tensor out = compute(inputs), grad = at::randn_like(out);
  return {name, [=] { torch::autograd::grad({out}, inputs, {grad}, /*retain_graph=*/true); }};
}

}  // namespace

void add(std::vector<BlockRow>& rows, const Setting& s, const std::string& what, double forward_bytes,
         double backward_bytes, const std::function<Tensors()>& inputs, const Compute& ours, const Compute& eager) {
  const auto sides = [=](bool backward) {
    const Tensors values = inputs();
    const auto side = backward ? backward_side : forward_side;
    return std::vector<Side>{side("ours", ours, values), side("eager", eager, values)};
  };
  rows.push_back({s.name + " " + what + " forward", forward_bytes, [=] { return sides(false); }});
  if (backward_bytes >= 0)
    rows.push_back({s.name + " " + what + " backward", backward_bytes, [=] { return sides(true); }});
}

std::string times(int64_t a, int64_t b) { return std::to_string(a) + " x " + std::to_string(b); }

}  // namespace xformers::bench
