#include "xformers/nn/state_dict.h"

#include <ATen/core/grad_mode.h>

#include "xformers/ops/common/check.h"

namespace xformers::nn {

StateDict state_dict(const torch::nn::Module& module) {
  StateDict state;
  for (const auto& item : module.named_parameters()) {
    if (item.value().defined()) state[item.key()] = item.value();
  }
  for (const auto& item : module.named_buffers()) {
    if (item.value().defined()) state[item.key()] = item.value();
  }
  return state;
}

void load_state_dict(torch::nn::Module& module, const StateDict& state) {
  const at::NoGradGuard no_grad;
  const ops::Check check("load_state_dict");
  const StateDict own = state_dict(module);
  for (const auto& [name, tensor] : own) {
    const auto found = state.find(name);
    if (found == state.end())
      check.fail(name, "missing", "a tensor " + ops::describe(tensor), "load all of the module");
    check.shape(name.c_str(), found->second, tensor.sym_sizes(), "build the module as the one that was saved");
    at::Tensor(tensor).copy_(found->second);
  }
  for (const auto& [name, tensor] : state) {
    if (own.contains(name) || name.find("moe.gate.") != std::string::npos) continue;
    check.fail(name, ops::describe(tensor), "nothing, since the module has no such name", "leave it out");
  }
}

}  // namespace xformers::nn
