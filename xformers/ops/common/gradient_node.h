// One differentiable call in autograd's graph: what it saves, and the function that computes gradients from that. A
// graph node of our own costs less than torch::autograd::Function and also works under torch.func and compiled
// autograd.
//
//   auto node = GradientNode::record("XformersRmsNormBackward", gradients, {x, weight});   // null: no gradient needed
//   at::Tensor out = below_autograd([&] { return rms_norm_op().call(x, weight, eps); });
//   if (node) node->save({x, weight}, {eps});
//   return with_history(out, node);
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <string>
#include <vector>

namespace xformers::ops {

// What gradients are computed from: as saved, undefined where an undefined tensor was saved.
struct SavedForGradient {
  std::vector<at::Tensor> tensors;
  std::vector<double> numbers;
  std::vector<c10::SymInt> sizes;
  std::vector<bool> wanted;  // which of the recorded inputs need their gradient
  bool last_use = false;     // nothing is kept for another backward pass: what has no other owner may be overwritten
};

class GradientNode final : public torch::autograd::Node {
 public:
  using variable_list = torch::autograd::variable_list;
  // Gradients of the results (undefined: zero) -> gradients of the recorded inputs (undefined: none).
  using Gradients = variable_list (*)(const variable_list& grads, const SavedForGradient& saved);

  // Null where none of the inputs requires a gradient now. Refuses forward-mode AD, whose tangents would get lost.
  static std::shared_ptr<GradientNode> record(const char* name, Gradients gradients,
                                              const std::vector<at::Tensor>& inputs);

  void save(const std::vector<at::Tensor>& tensors, std::vector<double> numbers = {},
            std::vector<c10::SymInt> sizes = {});
  void save_result(const at::Tensor& result);  // after with_history; comes behind the tensors of save()

  std::string name() const override { return name_; }
  variable_list apply(variable_list&& grads) override;
  void will_release_variables() override { last_use_ = true; }
  void release_variables() override;
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override;
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override;

 private:
  using Node::Node;
  SavedForGradient unpack();

  const char* name_ = "";
  Gradients gradients_ = nullptr;
  size_t num_inputs_ = 0;
  bool last_use_ = false;
  std::vector<torch::autograd::SavedVariable> tensors_;
  size_t num_results_ = 0;  // the last of tensors_ are results
  std::vector<double> numbers_;
  std::vector<c10::SymInt> sizes_;
};

template <class Fn>
auto below_autograd(const Fn& fn) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return fn();
}

// The result as one of node's (which may be null).
at::Tensor with_history(at::Tensor result, const std::shared_ptr<GradientNode>& node);

// For an input that the call is going to write into / has written into: as PyTorch's own in-place operators do.
void check_inplace(const at::Tensor& input, bool requires_grad);
void written_inplace(const at::Tensor& input, const std::shared_ptr<GradientNode>& node);

inline at::Tensor defined_or_empty(const std::optional<at::Tensor>& t) { return t.value_or(at::Tensor()); }
inline std::optional<at::Tensor> to_optional(const at::Tensor& t) {
  return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
}

}  // namespace xformers::ops
