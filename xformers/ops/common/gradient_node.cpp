#include "xformers/ops/common/gradient_node.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

namespace xformers::ops {

using torch::autograd::SavedVariable;

std::shared_ptr<GradientNode> GradientNode::record(const char* name, Gradients gradients,
                                                   const std::vector<at::Tensor>& inputs) {
  bool requires_grad = false;
  for (const at::Tensor& input : inputs) {
    if (!input.defined()) continue;
    TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::isFwGradDefined(input), name,
                                ": forward-mode AD is asked for, expected reverse mode.  Fix: use torch.autograd.grad "
                                "or torch.func.vjp.");
    requires_grad |= input.requires_grad();
  }
  if (!requires_grad || !at::GradMode::is_enabled()) return nullptr;
  std::shared_ptr<GradientNode> node(new GradientNode(), torch::autograd::deleteNode);
  node->name_ = name;
  node->gradients_ = gradients;
  node->num_inputs_ = inputs.size();
  torch::autograd::edge_list edges;
  for (const at::Tensor& input : inputs) {
    edges.push_back(input.defined() ? torch::autograd::impl::gradient_edge(input) : torch::autograd::Edge());
  }
  node->set_next_edges(std::move(edges));
  return node;
}

void GradientNode::save(const std::vector<at::Tensor>& tensors, std::vector<double> numbers,
                        std::vector<c10::SymInt> sizes) {
  for (const at::Tensor& tensor : tensors) tensors_.emplace_back(tensor, /*is_output=*/false);
  numbers_ = std::move(numbers);
  sizes_ = std::move(sizes);
}

void GradientNode::save_result(const at::Tensor& result) {
  tensors_.emplace_back(result, /*is_output=*/true);
  ++num_results_;
}

SavedForGradient GradientNode::unpack() {
  SavedForGradient saved{.tensors = {}, .numbers = numbers_, .sizes = sizes_, .wanted = {}};
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const bool is_result = i + num_results_ >= tensors_.size();
    saved.tensors.push_back(is_result ? tensors_[i].unpack(shared_from_this()) : tensors_[i].unpack());
  }
  for (size_t i = 0; i < num_inputs_; ++i) saved.wanted.push_back(task_should_compute_output(i));
  return saved;
}

torch::autograd::variable_list GradientNode::apply(variable_list&& grads) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const at::Tensor& grad : grads) {
    if (!grad.defined()) continue;
    SavedForGradient saved = unpack();
    saved.last_use = last_use_;
    if (last_use_) {
      for (SavedVariable& tensor : tensors_) tensor.reset_data();
    }
    return gradients_(grads, saved);
  }
  return variable_list(num_inputs_);
}

void GradientNode::release_variables() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (SavedVariable& tensor : tensors_) tensor.reset_data();
}

// Compiled autograd. First what tells this node from others in a cache of compiled graphs:
void GradientNode::compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const {
  for (size_t i = 0; i < tensors_.size(); ++i) args.collect(tensors_[i], i + num_results_ >= tensors_.size());
  args.collect(numbers_);
  args.collect(sizes_);
}

// ... then the call that goes into such a graph: the gradients on stand-ins for what was saved.
torch::autograd::variable_list GradientNode::apply_with_saved(const variable_list& grads,
                                                              torch::dynamo::autograd::SwapSavedVariables& swap) {
  namespace dynamo = torch::dynamo::autograd;
  for (SavedVariable& tensor : tensors_) swap.before(tensor);
  for (c10::SymInt& size : sizes_) swap.before(size);
  const SavedForGradient saved = unpack();
  dynamo::PackedArgs packed;
  std::vector<at::TypePtr> types;
  const auto pack = [&]<class Field>(const Field& field) {
    packed.pack(field);
    types.push_back(dynamo::IValuePacker<Field>::packed_type());
  };
  pack(saved.tensors);
  pack(saved.numbers);
  pack(saved.sizes);
  pack(saved.wanted);
  const auto call = [gradients = gradients_](const variable_list& inputs, const std::vector<c10::IValue>& args) {
    dynamo::PackedArgs from(args);
    SavedForGradient unpacked;
    unpacked.tensors = from.unpack<std::vector<at::Tensor>>();
    unpacked.numbers = from.unpack<std::vector<double>>();
    unpacked.sizes = from.unpack<std::vector<c10::SymInt>>();
    unpacked.wanted = from.unpack<std::vector<bool>>();
    return gradients(inputs, unpacked);
  };
  const auto& compiler = dynamo::getPyCompilerInterface();
  const std::string function = compiler->bind_function(swap.get_py_compiler(), name(), call, types,
                                                       /*is_custom_function=*/true, /*is_traceable=*/true);
  const auto output_metadata = dynamo::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
      dynamo::get_input_metadata(next_edges()));
  variable_list result = compiler->call_function(swap.get_py_compiler(), "apply_functional", function, grads,
                                                 packed.vec(), output_metadata);
  for (c10::SymInt& size : sizes_) swap.after(size);
  for (SavedVariable& tensor : tensors_) swap.after(tensor);
  return result;
}

at::Tensor with_history(at::Tensor result, const std::shared_ptr<GradientNode>& node) {
  if (node) torch::autograd::set_history(result, node);
  return result;
}

void check_inplace(const at::Tensor& input, bool requires_grad) {
  torch::autograd::check_inplace(input, requires_grad);
}

void written_inplace(const at::Tensor& input, const std::shared_ptr<GradientNode>& node) {
  torch::autograd::impl::bump_version(input);
  if (node) torch::autograd::rebase_history(input, node);
}

}  // namespace xformers::ops
