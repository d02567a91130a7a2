#include "xformers/nn/checkpoint/checkpoint.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include "xformers/nn/recompute/as_before.h"
#include "xformers/ops/common/node_pointer.h"

namespace xformers::nn {
namespace {

namespace autograd = torch::autograd;
using autograd::variable_list;

class CheckpointBackward final : public autograd::Node {
 public:
  CheckpointBackward(CheckpointedFunction function, const variable_list& inputs, RandomState random)
      : function_(std::move(function)), random_(std::move(random)), autocast_(AutocastState::now()) {
    for (const at::Tensor& input : inputs) {
      needs_gradient_.push_back(input.defined() && input.requires_grad());
      inputs_.emplace_back(input, /*is_output=*/false);
    }
    set_next_edges(autograd::collect_next_edges(inputs));
  }

  std::string name() const override { return "XformersCheckpointBackward"; }

  variable_list apply(variable_list&& grads) override {
    TORCH_CHECK(autograd::Engine::get_default_engine().is_checkpoint_valid(),
                "checkpoint: gradients are asked for by grad(), expected backward(): those of parameters that the "
                "function uses are added to them.  Fix: call backward() and read .grad().");
    TORCH_CHECK(function_,
                "checkpoint: this is a second backward pass, expected one: what it needs is gone.  Fix: call "
                "backward() with retain_graph, or once.");
    variable_list inputs, roots, root_grads;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      at::Tensor input = inputs_[i].unpack();
      if (input.defined()) input = input.detach().set_requires_grad(needs_gradient_[i]);
      inputs.push_back(std::move(input));
    }
    {
      const AsBefore as_before(autocast_, random_);
      const c10::AutoGradMode record(true);
      const variable_list outputs = function_(inputs);
      TORCH_CHECK(outputs.size() == grads.size(), "checkpoint: the function returns ", outputs.size(),
                  " tensors when it is repeated, expected ", grads.size(),
                  " as before.  Fix: let nothing that changes in between decide what it does.");
      for (size_t i = 0; i < outputs.size(); ++i) {
        if (!grads[i].defined() || !outputs[i].defined() || !outputs[i].requires_grad()) continue;
        roots.push_back(outputs[i]);
        root_grads.push_back(std::move(grads[i]));
      }
    }
    if (!roots.empty()) autograd::backward(roots, root_grads);
    variable_list result;
    for (size_t i = 0; i < inputs.size(); ++i) {
      result.push_back(needs_gradient_[i] && task_should_compute_output(i) ? inputs[i].grad() : at::Tensor());
    }
    return result;
  }

  void release_variables() override {
    for (autograd::SavedVariable& input : inputs_) input.reset_data();
    function_ = nullptr;
  }

 private:
  CheckpointedFunction function_;
  RandomState random_;
  AutocastState autocast_;
  std::vector<autograd::SavedVariable> inputs_;
  std::vector<bool> needs_gradient_;
};

}  // namespace

std::vector<at::Tensor> checkpoint(CheckpointedFunction function, std::vector<at::Tensor> inputs) {
  if (!at::GradMode::is_enabled()) return function(inputs);
  RandomState random = RandomState::of(inputs);
  const auto node = ops::make_node<CheckpointBackward>(function, inputs, std::move(random));
  variable_list outputs;
  {
    const at::NoGradGuard no_grad;
    const AsBefore without_cache(AutocastState::now());
    outputs = function(inputs);
    for (at::Tensor& out : outputs) {
      if (out.defined()) out = out.detach();  // also where it is an input, or a view of one
    }
  }
  for (at::Tensor& out : outputs) {
    if (out.defined() && autograd::isDifferentiableType(out.scalar_type())) {
      autograd::set_history(out, node);
    } else {
      node->add_input_metadata(autograd::Node::undefined_input{});
    }
  }
  return outputs;
}

}  // namespace xformers::nn
