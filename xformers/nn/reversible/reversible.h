// Stacks of layers that keep nothing but their output: backward rebuilds every layer's input from it.
#pragma once

#include <torch/nn/module.h>

#include <functional>
#include <vector>

#include "xformers/ops/common/check.h"

namespace xformers::nn {

// One layer of a pair: its parameters are those of `module`, whose forward `call` runs, on x and what else the sequence
// was called with (nothing where that goes to the other layer).
struct ReversibleLayer {
  std::shared_ptr<torch::nn::Module> module;
  std::function<at::Tensor(const at::Tensor& x, const std::vector<at::Tensor>& arguments)> call;
};

// Any module whose forward takes a tensor, or a tensor and further ones in a vector, and gives one like the first.
template <class Module>
ReversibleLayer reversible_layer(const torch::nn::ModuleHolder<Module>& module) {
  const std::shared_ptr<Module> layer = module.ptr();
  return {layer, [layer](const at::Tensor& x, const std::vector<at::Tensor>& arguments) -> at::Tensor {
            if constexpr (requires { layer->forward(x, arguments); }) {
              return layer->forward(x, arguments);
            } else {
              if (!arguments.empty()) {
                ops::Check("ReversibleSequence")
                    .fail("arguments", std::to_string(arguments.size()) + " tensors", "none",
                          "this layer takes x alone: route them to the other one");
              }
              return layer->forward(x);
            }
          }};
}

// Which layers of a pair take the further arguments.
struct ReversibleRoute {
  bool f = true, g = false;
};

// Of pairs (f, g), on the halves (x1, x2) of x along split_dim: y1 = x1 + f(x2), y2 = x2 + g(y1). Backward computes x2
// = y2 - g(y1), x1 = y1 - f(x2); random numbers, as of dropout, repeat in it. Gradients are those of the stored form up
// to rounding; memory for activations is that of one pair, time that of one more forward. Second derivatives, and
// torch::func, are refused. Parameters blocks.<i>.{f,g}.net.…, as in Python. From "The Reversible Residual Network"
// (Gomez et al., arXiv:1707.04585) and "Reformer" (Kitaev et al., arXiv:2001.04451).
class ReversibleSequenceImpl : public torch::nn::Module {
 public:
  using Pair = std::pair<ReversibleLayer, ReversibleLayer>;
  explicit ReversibleSequenceImpl(std::vector<Pair> pairs, int64_t split_dim = -1);

  // x with an even size along split_dim. arguments reach the layers that `route` names; those that require gradients
  // get them.
  at::Tensor forward(const at::Tensor& x, const std::vector<at::Tensor>& arguments = {}, ReversibleRoute route = {});

 private:
  std::vector<Pair> pairs_;
  int64_t split_dim_;
};
TORCH_MODULE(ReversibleSequence);

}  // namespace xformers::nn
