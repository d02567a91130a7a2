// Parameters and buffers by name, as Python's state_dict() has them: weights pass between the languages so.
#pragma once

#include <torch/nn/module.h>

#include <map>
#include <string>

namespace xformers::nn {

using StateDict = std::map<std::string, at::Tensor>;

StateDict state_dict(const torch::nn::Module& module);

// Copies into the module's own. xformers::Error for a name that is missing or that the module has not, and for another
// shape. The gate of experts is in Python's dicts twice: `moe.gate.…` may be there too.
void load_state_dict(torch::nn::Module& module, const StateDict& state);

}  // namespace xformers::nn
