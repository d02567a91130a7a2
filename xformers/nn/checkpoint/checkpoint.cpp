#include "xformers/nn/checkpoint/checkpoint.h"

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <mutex>
#include <optional>

namespace xformers::nn {
namespace {

namespace autograd = torch::autograd;
using autograd::variable_list;

// The CPU's default random generator and those of the tensors' devices.
class RegionRandomState {
 public:
  explicit RegionRandomState(const variable_list& tensors) {
    generators_.push_back(at::globalContext().defaultGenerator(at::kCPU));
    std::vector<at::Device> seen;
    for (const at::Tensor& t : tensors) {
      if (!t.defined() || !t.is_cuda() || std::find(seen.begin(), seen.end(), t.device()) != seen.end()) continue;
      seen.push_back(t.device());
      generators_.push_back(at::globalContext().defaultGenerator(t.device()));
    }
    states_ = now();
  }

  // What they are now, in exchange for what they were when this was made.
  std::vector<at::Tensor> swap_in() {
    std::vector<at::Tensor> before = now();
    set(states_);
    return before;
  }
  void set(const std::vector<at::Tensor>& states) {
    for (size_t i = 0; i < states.size(); ++i) {
      const std::scoped_lock lock(generators_[i].mutex());
      generators_[i].set_state(states[i]);
    }
  }

 private:
  std::vector<at::Tensor> now() {
    std::vector<at::Tensor> states;
    for (at::Generator& generator : generators_) {
      const std::scoped_lock lock(generator.mutex());
      states.push_back(generator.get_state());
    }
    return states;
  }

  std::vector<at::Generator> generators_;
  std::vector<at::Tensor> states_;
};

class RestoredRandomState {
 public:
  explicit RestoredRandomState(RegionRandomState& state) : state_(state), before_(state.swap_in()) {}
  RestoredRandomState(const RestoredRandomState&) = delete;
  RestoredRandomState& operator=(const RestoredRandomState&) = delete;
  ~RestoredRandomState() { state_.set(before_); }

 private:
  RegionRandomState& state_;
  std::vector<at::Tensor> before_;
};

// Autocast on the CPU and on GPUs. Its memory of weights that were cast is off: a cast made without gradients must not
// serve where they are recorded.
struct AutocastState {
  static constexpr at::DeviceType kDevices[] = {at::kCPU, at::kCUDA};
  bool enabled[2];
  at::ScalarType dtype[2];
  bool cache;

  static AutocastState now() {
    AutocastState state{};
    for (int i = 0; i < 2; ++i) {
      state.enabled[i] = at::autocast::is_autocast_enabled(kDevices[i]);
      state.dtype[i] = at::autocast::get_autocast_dtype(kDevices[i]);
    }
    state.cache = at::autocast::is_autocast_cache_enabled();
    return state;
  }
  AutocastState without_cache() const {
    AutocastState state = *this;
    state.cache = false;
    return state;
  }
  void set() const {
    for (int i = 0; i < 2; ++i) {
      at::autocast::set_autocast_enabled(kDevices[i], enabled[i]);
      at::autocast::set_autocast_dtype(kDevices[i], dtype[i]);
    }
    at::autocast::set_autocast_cache_enabled(cache);
  }
};

class RestoredAutocast {
 public:
  explicit RestoredAutocast(const AutocastState& state) { state.without_cache().set(); }
  RestoredAutocast(const RestoredAutocast&) = delete;
  RestoredAutocast& operator=(const RestoredAutocast&) = delete;
  ~RestoredAutocast() { before_.set(); }

 private:
  AutocastState before_ = AutocastState::now();
};

class CheckpointBackward final : public autograd::Node {
 public:
  CheckpointBackward(CheckpointedFunction function, const variable_list& inputs, RegionRandomState random)
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
      const RestoredRandomState random(random_);
      const RestoredAutocast autocast(autocast_);
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
  RegionRandomState random_;
  AutocastState autocast_;
  std::vector<autograd::SavedVariable> inputs_;
  std::vector<bool> needs_gradient_;
};

}  // namespace

std::vector<at::Tensor> checkpoint(CheckpointedFunction function, std::vector<at::Tensor> inputs) {
  if (!at::GradMode::is_enabled()) return function(inputs);
  RegionRandomState random(inputs);
  const std::shared_ptr<CheckpointBackward> node(new CheckpointBackward(function, inputs, std::move(random)),
                                                 autograd::deleteNode);
  variable_list outputs;
  {
    const at::NoGradGuard no_grad;
    const RestoredAutocast autocast(AutocastState::now());
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
