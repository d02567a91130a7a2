// One differentiable call in autograd's graph. What it keeps is a struct with typed members, and the function that
// computes gradients from them. A graph node of our own costs less than torch::autograd::Function and also works under
// torch.func and compiled autograd.
//
//   struct RmsNormKept {
//     static constexpr const char* kNode = "XformersRmsNormBackward";
//     at::Tensor x;
//     double eps = 0;
//     static constexpr auto members() { return std::tuple{&RmsNormKept::x, &RmsNormKept::eps}; }
//     variable_list gradients(const variable_list& grads, const Wanted& wanted) const;   // of the recorded inputs
//   };
//   const auto node = record<RmsNormKept>(args.x, args.weight);   // null: no gradient needed
//   at::Tensor out = with_history(below_autograd(args), node);
//   if (node) node->keep({.x = args.x, .eps = args.eps});
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/util/FunctionRef.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <string>
#include <variant>
#include <vector>

#include "xformers/ops/common/node_pointer.h"
#include "xformers/ops/common/operator.h"

namespace xformers::ops {

using torch::autograd::variable_list;

// What backward is asked for.
struct Wanted {
  std::vector<bool> inputs;  // which of the recorded ones need their gradient
  bool last_use = false;     // nothing is kept for another backward pass: what has no other owner may be overwritten

  bool operator[](size_t input) const { return inputs[input]; }
  // The gradients (undefined: none) of the first inputs, without those that nobody wants.
  template <class... Tensors>
  variable_list only(const Tensors&... gradients) const {
    variable_list result{gradients...};
    for (size_t i = 0; i < result.size(); ++i) {
      if (!inputs[i]) result[i] = at::Tensor();
    }
    return result;
  }
};

// A node as far as it needs no types.
class GradientNode : public torch::autograd::Node {
 public:
  using Field =
      std::variant<at::Tensor*, OptionalTensor*, std::vector<at::Tensor>*, bool*, int64_t*, double*, c10::SymInt*,
                   std::vector<c10::SymInt>*, std::optional<double>*, std::optional<at::ScalarType>*>;
  using FieldFn = c10::function_ref<void(Field)>;

  std::string name() const override { return name_; }
  variable_list apply(variable_list&& grads) override;
  void will_release_variables() override { last_use_ = true; }
  void release_variables() override;
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override;
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override;

 protected:
  explicit GradientNode(const char* name) : name_(name) {}
  void save_tensors();  // those of the kept struct become saved variables

  // Gradients of a kept struct whose fields `fill` has looked at, in order, and changed.
  using Gradients = variable_list (*)(FieldFn fill, const variable_list& grads, const Wanted& wanted);
  virtual void for_each_field(FieldFn fn) = 0;
  virtual variable_list gradients_of_kept(FieldFn fill, const variable_list& grads, const Wanted& wanted) = 0;
  virtual Gradients gradients_of_new() const = 0;

 private:
  Wanted wanted() const;

  const char* name_;
  bool last_use_ = false;
  std::vector<torch::autograd::SavedVariable> tensors_;
};

template <class Kept>
class OperatorNode final : public GradientNode {
 public:
  OperatorNode() : GradientNode(Kept::kNode) {}

  // After with_history: results among what is kept must be known as such.
  void keep(Kept kept) {
    kept_ = std::move(kept);
    save_tensors();
  }

 private:
  static void visit(Kept& kept, FieldFn fn) {
    std::apply([&](auto... members) { (fn(&(kept.*members)), ...); }, Kept::members());
  }

  void for_each_field(FieldFn fn) override { visit(kept_, fn); }
  variable_list gradients_of_kept(FieldFn fill, const variable_list& grads, const Wanted& wanted) override {
    Kept kept = kept_;
    visit(kept, fill);
    return kept.gradients(grads, wanted);
  }
  Gradients gradients_of_new() const override {
    return [](FieldFn fill, const variable_list& grads, const Wanted& wanted) {
      Kept kept;
      visit(kept, fill);
      return kept.gradients(grads, wanted);
    };
  }

  Kept kept_;  // without its tensors
};

// ---- recording a call ----
class InputEdges {
 public:
  explicit InputEdges(const char* node) : node_(node) {}
  void look_at(const at::Tensor& input);  // refuses forward-mode AD, whose tangents would get lost
  void look_at(const OptionalTensor& input);
  void look_at(at::TensorList inputs);
  bool gradient_needed() const;
  void add(const at::Tensor& input);
  void add(const OptionalTensor& input);
  void add(at::TensorList inputs);
  torch::autograd::edge_list take() { return std::move(edges_); }

 private:
  const char* node_;
  bool requires_grad_ = false;
  torch::autograd::edge_list edges_;
};

// Null where none of the inputs requires a gradient now.
template <class Kept, class... Inputs>
NodePointer<OperatorNode<Kept>> record(const Inputs&... inputs) {
  InputEdges edges(Kept::kNode);
  (edges.look_at(inputs), ...);
  if (!edges.gradient_needed()) return nullptr;
  (edges.add(inputs), ...);
  auto node = make_node<OperatorNode<Kept>>();
  node->set_next_edges(edges.take());
  return node;
}

template <class Op>
typename Op::Result below_autograd(const Op& args) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return call(args);
}

// The result as one of node's (which may be null).
at::Tensor with_history(at::Tensor result, const AnyNode& node);

// For an input that the call is going to write into / has written into: as PyTorch's own in-place operators do.
void check_inplace(const at::Tensor& input, bool requires_grad);
void written_inplace(const at::Tensor& input, const AnyNode& node);

// Whether nobody else can read the memory of a tensor that the caller holds once: no other tensor of it, and no view.
bool is_sole_owner(const at::Tensor& tensor);

// Operators without gradients of their own, such as backward ones: they refuse inputs that require them.
template <class... Ops>
void implement_no_gradients(torch::Library& m) {
  (m.impl(Ops::kName, torch::autograd::autogradNotImplementedFallback()), ...);
}

}  // namespace xformers::ops
