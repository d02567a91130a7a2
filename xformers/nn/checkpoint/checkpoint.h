// Activation checkpointing: a part of a model that keeps its inputs alone, and runs again when backward needs the rest.
//
//   at::Tensor out = checkpoint([&](const at::Tensor& x) { return block->forward(x); }, x);
//
// Which operators are kept is chosen in Python alone (docs/checkpoint.md): PyTorch's hooks for it are Python's.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <utility>
#include <vector>

namespace xformers::nn {

using CheckpointedFunction = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>;

// function(inputs), whose operators save nothing. Backward calls it again, with the random state and the autocast of
// this call, and differentiates it; gradients of parameters that it uses are added to them. Tensors that it reads
// otherwise than through `inputs` must be leaves of the graph, or need no gradient.
//
// Without gradients it is function(inputs). c10::Error where a gradient is asked for by torch::autograd::grad (of
// parameters there is none then: call backward()), where an input was written to in between, or where the second call
// returns another number of tensors.
std::vector<at::Tensor> checkpoint(CheckpointedFunction function, std::vector<at::Tensor> inputs);

// The same for one tensor.
inline at::Tensor checkpoint(std::function<at::Tensor(const at::Tensor&)> function, const at::Tensor& input) {
  return checkpoint([function = std::move(function)](
                        const std::vector<at::Tensor>& inputs) { return std::vector<at::Tensor>{function(inputs[0])}; },
                    std::vector<at::Tensor>{input})[0];
}

}  // namespace xformers::nn
