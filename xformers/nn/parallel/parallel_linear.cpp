#include "xformers/nn/parallel/parallel_linear.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/nn/init.h>

#include "xformers/nn/functional/parallel_linear.h"
#include "xformers/nn/optional.h"
#include "xformers/ops/sequence_parallel/sequence_parallel.h"

namespace xformers::nn {
namespace {

at::Tensor initialised_part(const InitMethod& init, int64_t out, int64_t in, int64_t dim, const std::string& group) {
  const at::Tensor whole = at::empty({out, in});
  init ? init(whole) : static_cast<void>(torch::nn::init::xavier_normal_(whole));
  const at::NoGradGuard no_grad;
  return ops::part_of_whole(whole, dim, group);
}

const at::Tensor& whole_entry(const StateDict& state, const std::string& name, at::IntArrayRef sizes,
                              const char* layer) {
  const auto found = state.find(name);
  if (found == state.end() || found->second.sizes() != sizes) {
    throw Error(std::string(layer) + ": " + name + " of the state is " +
                (found == state.end() ? "missing" : c10::str(found->second.sizes())) + ", expected " + c10::str(sizes) +
                ".  Fix: load what full_state_dict() of such a layer gave");
  }
  return found->second;
}

}  // namespace

ColumnParallelLinearImpl::ColumnParallelLinearImpl(const ColumnParallelLinearOptions& options_arg)
    : options(options_arg) {
  ColumnParallelLinearImpl::reset();
}

void ColumnParallelLinearImpl::reset() {
  weights = register_module("weights", torch::nn::ParameterList());
  if (options.bias) biases = register_module("biases", torch::nn::ParameterList());
  for (const int64_t out : options.out_features) {
    weights->append(initialised_part(options.init_method, out, options.in_features, 0, options.process_group));
    if (options.bias) biases->append(at::zeros({(*weights)[weights->size() - 1].size(0)}));
  }
}

std::vector<at::Tensor> ColumnParallelLinearImpl::forward(const at::Tensor& x) {
  const auto list = [](const torch::nn::ParameterList& parameters) {
    std::vector<at::Tensor> result;
    for (size_t i = 0; !parameters.is_empty() && i < parameters->size(); ++i) result.push_back((*parameters)[i]);
    return result;
  };
  return column_parallel_linear({x, list(weights), list(biases), options.process_group, options.gather_output,
                                 options.sequence_parallel, options.fuse_sequence_parallel});
}

StateDict ColumnParallelLinearImpl::full_state_dict() {
  StateDict state;
  for (const auto& parameter : named_parameters()) {
    state[parameter.key()] = ops::whole_of_parts(parameter.value(), 0, options.process_group);
  }
  return state;
}

void ColumnParallelLinearImpl::load_full_state_dict(const StateDict& state) {
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < options.out_features.size(); ++i) {
    const auto load = [&](const std::string& name, at::Tensor parameter, std::vector<int64_t> sizes) {
      parameter.copy_(
          ops::part_of_whole(whole_entry(state, name, sizes, "ColumnParallelLinear"), 0, options.process_group));
    };
    load("weights." + std::to_string(i), (*weights)[i], {options.out_features[i], options.in_features});
    if (options.bias) load("biases." + std::to_string(i), (*biases)[i], {options.out_features[i]});
  }
}

RowParallelLinearImpl::RowParallelLinearImpl(const RowParallelLinearOptions& options_arg) : options(options_arg) {
  RowParallelLinearImpl::reset();
}

void RowParallelLinearImpl::reset() {
  weight = register_parameter("weight", initialised_part(options.init_method, options.out_features, options.in_features,
                                                         1, options.process_group));
  bias = register_parameter("bias", options.bias ? at::zeros({options.out_features}) : at::Tensor(), options.bias);
}

at::Tensor RowParallelLinearImpl::forward(const at::Tensor& x) {
  return row_parallel_linear({x, weight, to_optional(bias), options.process_group, options.input_is_parallel,
                              options.sequence_parallel, options.fuse_sequence_parallel});
}

StateDict RowParallelLinearImpl::full_state_dict() {
  StateDict state{{"weight", ops::whole_of_parts(weight, 1, options.process_group)}};
  if (options.bias) state["bias"] = bias.detach().clone();
  return state;
}

void RowParallelLinearImpl::load_full_state_dict(const StateDict& state) {
  const at::NoGradGuard no_grad;
  const at::Tensor& whole =
      whole_entry(state, "weight", {options.out_features, options.in_features}, "RowParallelLinear");
  weight.copy_(ops::part_of_whole(whole, 1, options.process_group));
  if (options.bias) bias.copy_(whole_entry(state, "bias", {options.out_features}, "RowParallelLinear"));
}

}  // namespace xformers::nn
