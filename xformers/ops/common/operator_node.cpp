#include "xformers/ops/common/operator_node.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <algorithm>

#include "xformers/ops/common/saveable.h"

namespace xformers::ops {
namespace {

using torch::autograd::SavedVariable;

// fn(tensor) for the tensors of a field, those left out as undefined ones; false for a field of another kind.
template <class Fn>
bool for_each_tensor(GradientNode::Field field, const Fn& fn) {
  if (const auto* tensor = std::get_if<at::Tensor*>(&field)) {
    fn(**tensor);
  } else if (const auto* optional = std::get_if<OptionalTensor*>(&field)) {
    at::Tensor value = **optional ? *std::move(**optional) : at::Tensor();
    fn(value);
    **optional = value.defined() ? OptionalTensor(std::move(value)) : std::nullopt;
  } else if (const auto* list = std::get_if<std::vector<at::Tensor>*>(&field)) {
    for (at::Tensor& tensor : **list) fn(tensor);
  } else {
    return false;
  }
  return true;
}

// Held by the caller's reference alone. What was once seen by Python has a wrapper, which counts as an owner for as
// long as there is another one, also when Python has let go of it (what hooks of saved tensors return, for example).
template <class Target>
bool is_held_once(size_t owners, const Target& target) {
  if constexpr (requires { target.pyobj_slot()->has_unique_reference(); }) {
    if (owners == 2) return target.pyobj_slot()->has_unique_reference();
  }
  return owners == 1;
}

}  // namespace

void GradientNode::save_tensors() {
  size_t count = 0;
  for_each_field([&](Field field) { for_each_tensor(field, [&](const at::Tensor&) { ++count; }); });
  tensors_.reserve(count);
  for_each_field([&](Field field) {
    for_each_tensor(field, [&](at::Tensor& tensor) {
      const auto* meta = tensor.defined() ? torch::autograd::impl::get_autograd_meta(tensor) : nullptr;
      tensors_.emplace_back(saveable(tensor), /*is_output=*/meta && meta->grad_fn_.get() == this);
      tensor = at::Tensor();
    });
  });
}

Wanted GradientNode::wanted() const {
  Wanted wanted{.inputs = {}, .last_use = last_use_};
  for (size_t i = 0; i < num_outputs(); ++i) wanted.inputs.push_back(task_should_compute_output(i));
  return wanted;
}

variable_list GradientNode::apply(variable_list&& grads) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (std::none_of(grads.begin(), grads.end(), [](const at::Tensor& grad) { return grad.defined(); })) {
    return variable_list(num_outputs());
  }
  auto next = tensors_.begin();
  const auto fill = [&](Field field) {
    for_each_tensor(field, [&](at::Tensor& tensor) {
      tensor = next->unpack(getptr());
      if (last_use_) next->reset_data();
      ++next;
    });
  };
  return gradients_of_kept(fill, grads, wanted());
}

void GradientNode::release_variables() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (SavedVariable& tensor : tensors_) tensor.reset_data();
}

// Compiled autograd. First what tells this node from others in a cache of compiled graphs:
void GradientNode::compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const {
  for (const SavedVariable& tensor : tensors_) args.collect(tensor, /*is_output=*/true);
  const_cast<GradientNode*>(this)->for_each_field([&](Field field) {
    if (const auto* list = std::get_if<std::vector<at::Tensor>*>(&field))
      args.collect(static_cast<int64_t>((*list)->size()));
    std::visit(
        [&]<class Value>(Value* value) {
          if constexpr (requires { args.collect(*value); }) {
            if (!for_each_tensor(value, [](at::Tensor&) {})) args.collect(*value);
          }
        },
        field);
  });
}

// ... then the call that goes into such a graph: the gradients on stand-ins for what was kept.
variable_list GradientNode::apply_with_saved(const variable_list& grads,
                                             torch::dynamo::autograd::SwapSavedVariables& swap) {
  namespace dynamo = torch::dynamo::autograd;
  for (SavedVariable& tensor : tensors_) swap.before(tensor);
  const auto for_each_symint = [&](const auto& fn) {
    for_each_field([&](Field field) {
      if (const auto* value = std::get_if<c10::SymInt*>(&field)) fn(**value);
      if (const auto* list = std::get_if<std::vector<c10::SymInt>*>(&field)) {
        for (c10::SymInt& value : **list) fn(value);
      }
    });
  };
  for_each_symint([&](c10::SymInt& value) { swap.before(value); });

  dynamo::PackedArgs packed;
  std::vector<at::TypePtr> types;
  const auto pack = [&]<class Value>(const Value& value) {
    packed.pack(value);
    types.push_back(dynamo::IValuePacker<Value>::packed_type());
  };
  auto next = tensors_.begin();
  for_each_field([&](Field field) {
    std::visit(
        [&](const auto* kept) {
          auto value = *kept;
          for_each_tensor(&value, [&](at::Tensor& tensor) { tensor = (next++)->unpack(getptr()); });
          pack(value);
        },
        field);
  });
  pack(wanted().inputs);
  const auto call = [gradients = gradients_of_new()](const variable_list& inputs,
                                                     const std::vector<c10::IValue>& values) {
    dynamo::PackedArgs from(values);
    Wanted wanted;
    // Fields come first, but the gradients are computed as soon as they are filled.
    wanted.inputs = dynamo::IValuePacker<std::vector<bool>>::unpack(values.back());
    const auto fill = [&](Field field) {
      std::visit([&]<class Value>(Value* value) { *value = from.unpack<Value>(); }, field);
    };
    return gradients(fill, inputs, wanted);
  };
  const auto& compiler = dynamo::getPyCompilerInterface();
  const std::string function = compiler->bind_function(swap.get_py_compiler(), name(), call, types,
                                                       /*is_custom_function=*/true, /*is_traceable=*/true);
  const auto output_metadata = dynamo::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
      dynamo::get_input_metadata(next_edges()));
  variable_list result = compiler->call_function(swap.get_py_compiler(), "apply_functional", function, grads,
                                                 packed.vec(), output_metadata);
  for_each_symint([&](c10::SymInt& value) { swap.after(value); });
  for (SavedVariable& tensor : tensors_) swap.after(tensor);
  return result;
}

// ---- recording ----
void InputEdges::look_at(const at::Tensor& input) {
  if (!input.defined()) return;
  TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::isFwGradDefined(input), node_,
                              ": forward-mode AD is asked for, expected reverse mode.  Fix: use torch.autograd.grad "
                              "or torch.func.vjp.");
  requires_grad_ |= input.requires_grad();
}
void InputEdges::look_at(const OptionalTensor& input) {
  if (input) look_at(*input);
}
void InputEdges::look_at(at::TensorList inputs) {
  for (const at::Tensor& input : inputs) look_at(input);
}

bool InputEdges::gradient_needed() const { return requires_grad_ && at::GradMode::is_enabled(); }

void InputEdges::add(const at::Tensor& input) {
  edges_.push_back(input.defined() ? torch::autograd::impl::gradient_edge(input) : torch::autograd::Edge());
}
void InputEdges::add(const OptionalTensor& input) { add(input.value_or(at::Tensor())); }
void InputEdges::add(at::TensorList inputs) {
  for (const at::Tensor& input : inputs) add(input);
}

at::Tensor with_history(at::Tensor result, const AnyNode& node) {
  if (node) torch::autograd::set_history(result, node);
  return result;
}

void check_inplace(const at::Tensor& input, bool requires_grad) {
  torch::autograd::check_inplace(input, requires_grad);
}

void written_inplace(const at::Tensor& input, const AnyNode& node) {
  torch::autograd::impl::bump_version(input);
  if (node) torch::autograd::rebase_history(input, node);
}

bool is_sole_owner(const at::Tensor& tensor) {
  const at::Storage& storage = tensor.storage();
  return is_held_once(tensor.use_count(), *tensor.unsafeGetTensorImpl()) &&
         is_held_once(storage.use_count(), *storage.unsafeGetStorageImpl());
}

}  // namespace xformers::ops
