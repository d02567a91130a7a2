#include "xformers/nn/attention/input_projection.h"

#include <ATen/ops/stack.h>

#include "xformers/nn/functional/input_projection.h"
#include "xformers/ops/common/check.h"

namespace xformers::nn {

InputProjectionImpl::InputProjectionImpl(const InputProjectionOptions& options_arg) : options(options_arg) {
  InputProjectionImpl::reset();
}

void InputProjectionImpl::reset() {
  if (!options.use_separate_proj_weight && options.dim_key != options.dim_value) {
    const ops::Check check("InputProjection");
    check.fail("dim_value", std::to_string(options.dim_value), "dim_key = " + std::to_string(options.dim_key),
               "values share their weight; set use_separate_proj_weight");
  }
  const auto linear = [&](int64_t out, bool bias) {
    return torch::nn::Linear(torch::nn::LinearOptions(options.in_features, out).bias(bias));
  };
  q_proj = register_module("q_proj", linear(options.dim_key, options.bias[0]));
  k_proj = register_module("k_proj", linear(options.dim_key, options.bias[1]));
  v_proj = register_module("v_proj", linear(options.dim_value, options.bias[2]));
  pack();
}

bool InputProjectionImpl::packable() const {
  return options.use_separate_proj_weight && options.dim_key == options.dim_value &&
         options.bias[0] == options.bias[1] && options.bias[1] == options.bias[2];
}

void InputProjectionImpl::pack() {
  if (!options.use_separate_proj_weight) {
    for (const torch::nn::Linear& projection : {k_proj, v_proj}) {
      projection->weight.set_requires_grad(false);
      projection->weight.set_data(q_proj->weight.data());
    }
  }
  if (!packable()) return;
  const auto side_by_side = [](std::array<at::Tensor*, 3> tensors) {
    if (!tensors[0]->defined()) return;
    const at::Tensor together = at::stack({tensors[0]->detach(), tensors[1]->detach(), tensors[2]->detach()});
    for (int64_t i = 0; i < 3; ++i) tensors[i]->set_data(together[i]);
  };
  side_by_side({&q_proj->weight, &k_proj->weight, &v_proj->weight});
  side_by_side({&q_proj->bias, &k_proj->bias, &v_proj->bias});
}

void InputProjectionImpl::to(at::Device device, at::ScalarType dtype, bool non_blocking) {
  Module::to(device, dtype, non_blocking);
  pack();
}

void InputProjectionImpl::to(at::ScalarType dtype, bool non_blocking) {
  Module::to(dtype, non_blocking);
  pack();
}

void InputProjectionImpl::to(at::Device device, bool non_blocking) {
  Module::to(device, non_blocking);
  pack();
}

std::array<at::Tensor, 3> InputProjectionImpl::forward(const at::Tensor& query, const at::Tensor& key,
                                                       const at::Tensor& value) {
  if (!options.use_separate_proj_weight) {
    const auto shared = [&](const at::Tensor& x, const torch::nn::Linear& own) {
      const at::Tensor out = functional::input_projection({x, {q_proj->weight}, {}})[0];
      return own->bias.defined() ? out + own->bias : out;
    };
    return {shared(query, q_proj), shared(key, k_proj), shared(value, v_proj)};
  }
  if (packable() && query.is_same(key) && key.is_same(value)) {
    const std::vector<at::Tensor> weights{q_proj->weight, k_proj->weight, v_proj->weight};
    std::vector<at::Tensor> biases;
    if (options.bias[0]) biases = {q_proj->bias, k_proj->bias, v_proj->bias};
    const std::vector<at::Tensor> qkv = functional::input_projection({query, weights, biases});
    return {qkv[0], qkv[1], qkv[2]};
  }
  return {q_proj(query), k_proj(key), v_proj(value)};
}

}  // namespace xformers::nn
