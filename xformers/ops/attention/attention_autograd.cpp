// Gradients of attention_forward: a graph node of our own, which costs a call less than torch::autograd::Function and
// also works under torch.func and compiled autograd. Calls that need no gradient leave no trace of it.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/strides.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <type_traits>

#include "xformers/ops/attention/attention_check.h"
#include "xformers/ops/common/stack.h"

namespace xformers::ops {
namespace {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// What a node keeps: the arguments of the forward and its results. `fn` gets each field of it, in a fixed order.
struct Saved {
  AttentionArgs args;
  at::Tensor out, lse, lse_low;
  bool need_bias_grad = false;

  template <class Self, class Fn>
  static void for_each_field(Self& self, const Fn& fn) {
    AttentionForward::for_each_member([&](auto member) { fn(self.args.*member); });
    fn(self.out);
    fn(self.lse);
    fn(self.lse_low);
    fn(self.need_bias_grad);
  }
};

// The dimension at which query, key and value lie stacked in one tensor ([batch, seqlen, 3, heads, head_dim], say), or
// -1. Their gradients then go into one such tensor, so that whatever took the three apart needs no copy.
int64_t stack_dim_of(const AttentionArgs& args) {
  const std::array<at::Tensor, 3> tensors{args.query, args.key, args.value};
  if (!std::all_of(tensors.begin(), tensors.end(), is_eager) || args.seqused_k) return -1;
  if (!args.query.is_alias_of(args.key)) return -1;
  for (int64_t dim = 0; dim < args.query.dim(); ++dim) {
    const at::DimVector strides = get_stack_strides(tensors, dim);
    if (strides.empty()) return -1;
    at::DimVector sizes(args.query.sizes());
    sizes.insert(sizes.begin() + dim, 3);
    if (c10::contiguous_strides(sizes) == strides) return dim;
  }
  return -1;
}

// (grad_out, grad_lse), each possibly undefined -> gradients of query, key, value, attn_bias
variable_list gradients(const variable_list& grads, const Saved& saved) {
  variable_list result(4);
  if (!grads[0].defined() && !grads[1].defined()) return result;
  AttentionGradArgs args;
  static_cast<AttentionArgs&>(args) = saved.args;
  args.grad_out = grads[0].defined() ? grads[0] : at::zeros_like(saved.out);
  args.out = saved.out;
  args.lse = saved.lse;
  args.lse_low = saved.lse_low;
  if (grads[1].defined()) args.grad_lse = grads[1];
  args.need_bias_grad = saved.need_bias_grad;
  args.stack_dim = stack_dim_of(args);
  if (args.stack_dim < 0) {
    std::tie(result[0], result[1], result[2], result[3]) = attention_backward(args);
  } else {
    at::Tensor stacked;
    std::tie(stacked, result[3]) = attention_backward_stacked(args);
    for (int i = 0; i < 3; ++i) result[i] = stacked.select(args.stack_dim, i);
  }
  if (!saved.need_bias_grad) result[3] = at::Tensor();
  return result;
}

class AttentionNode final : public torch::autograd::Node {
 public:
  using Node::Node;

  std::string name() const override { return "XformersAttentionBackward"; }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return gradients(grads, unpack());
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for_each_tensor([](SavedVariable& tensor, bool) { tensor.reset_data(); });
  }

  // Compiled autograd. First what tells this node from others in a cache of compiled graphs:
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    const_cast<AttentionNode*>(this)->for_each_tensor(
        [&](SavedVariable& tensor, bool is_output) { args.collect(tensor, is_output); });
    AttentionForward::for_each_member([&](auto member) {
      if constexpr (!is_tensor_member<decltype(member)>) args.collect(args_.*member);
    });
  }

  // ... then the call that goes into such a graph: gradients() on stand-ins for the saved tensors.
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    namespace dynamo = torch::dynamo::autograd;
    for_each_tensor([&](SavedVariable& tensor, bool) { swap.before(tensor); });
    const auto for_each_symint = [&](const auto& fn) {
      for (c10::SymInt* value : {&args_.window_left, &args_.window_right, &args_.page_size}) fn(*value);
    };
    for_each_symint([&](c10::SymInt& value) { swap.before(value); });
    dynamo::PackedArgs packed;
    std::vector<at::TypePtr> types;
    const Saved saved = unpack();
    Saved::for_each_field(saved, [&]<class Field>(const Field& field) {
      packed.pack(field);
      types.push_back(dynamo::IValuePacker<Field>::packed_type());
    });
    const auto call = [](const variable_list& inputs, const std::vector<c10::IValue>& args) {
      dynamo::PackedArgs from(args);
      Saved unpacked;
      Saved::for_each_field(unpacked, [&]<class Field>(Field& field) { field = from.unpack<Field>(); });
      return gradients(inputs, unpacked);
    };
    const auto& compiler = dynamo::getPyCompilerInterface();
    const std::string function = compiler->bind_function(swap.get_py_compiler(), name(), call, types,
                                                         /*is_custom_function=*/true, /*is_traceable=*/true);
    const auto output_metadata = dynamo::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
        dynamo::get_input_metadata(next_edges()));
    variable_list result = compiler->call_function(swap.get_py_compiler(), "apply_functional", function, grads,
                                                   packed.vec(), output_metadata);
    for_each_symint([&](c10::SymInt& value) { swap.after(value); });
    for_each_tensor([&](SavedVariable& tensor, bool) { swap.after(tensor); });
    return result;
  }

  void save_arguments(const AttentionArgs& args) {
    int index = 0;
    AttentionForward::for_each_member([&](auto member) {
      if constexpr (is_tensor_member<decltype(member)>) {
        const OptionalTensor tensor = args.*member;
        if (tensor) tensors_[index] = SavedVariable(*tensor, /*is_output=*/false);
        ++index;
      } else {
        args_.*member = args.*member;
      }
    });
  }

  void save_results(const at::Tensor& out, const at::Tensor& lse, const at::Tensor& lse_low) {
    out_ = SavedVariable(out, /*is_output=*/true);
    lse_ = SavedVariable(lse, /*is_output=*/true);
    lse_low_ = SavedVariable(lse_low, /*is_output=*/false);
  }

 private:
  template <class Fn>
  void for_each_tensor(const Fn& fn) {
    for (SavedVariable& tensor : tensors_) fn(tensor, /*is_output=*/false);
    fn(out_, /*is_output=*/true);
    fn(lse_, /*is_output=*/true);
    fn(lse_low_, /*is_output=*/false);
  }

  Saved unpack() {
    Saved saved{.args = args_,
                .out = out_.unpack(shared_from_this()),
                .lse = lse_.unpack(shared_from_this()),
                .lse_low = lse_low_.unpack(),
                .need_bias_grad = task_should_compute_output(3)};
    int index = 0;
    AttentionForward::for_each_member([&](auto member) {
      if constexpr (is_tensor_member<decltype(member)>) {
        const at::Tensor tensor = tensors_[index++].unpack();
        if (tensor.defined()) saved.args.*member = tensor;
      }
    });
    return saved;
  }

  AttentionArgs args_;  // without its tensors, which are
  std::array<SavedVariable, AttentionForward::kNumTensors> tensors_;
  SavedVariable out_, lse_, lse_low_;
};

// Kernels compute reverse-mode gradients of floating tensors only; anything else would get lost without a word.
void refuse_what_has_no_gradient(const AttentionArgs& args, bool requires_grad) {
  using torch::autograd::isFwGradDefined;
  TORCH_CHECK_NOT_IMPLEMENTED(!isFwGradDefined(args.query) && !isFwGradDefined(args.key) &&
                                  !isFwGradDefined(args.value) && !isFwGradDefined(args.attn_bias),
                              "attention: forward-mode AD is asked for, expected reverse mode.  Fix: use "
                              "torch.autograd.grad or torch.func.vjp.");
  TORCH_CHECK_NOT_IMPLEMENTED(!requires_grad || !is_quantized(args),
                              "attention: an input requires grad beside quantised key and value (int32), expected none "
                              "that does.  Fix: call under torch.no_grad(), or dequantise key and value.");
}

AttentionResult forward_autograd(const AttentionArgs& args) {
  check_same_device(args);  // here, since below the dispatcher has already chosen one of the devices
  const bool requires_grad = torch::autograd::compute_requires_grad(args.query, args.key, args.value, args.attn_bias);
  refuse_what_has_no_gradient(args, requires_grad);
  const auto forward = [](const AttentionArgs& below_args) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return attention_forward(below_args);
  };
  if (!requires_grad) return forward(args);

  const std::shared_ptr<AttentionNode> node(new AttentionNode(), torch::autograd::deleteNode);
  node->set_next_edges(torch::autograd::collect_next_edges(args.query, args.key, args.value, args.attn_bias));
  node->save_arguments(args);
  AttentionArgs with_lse = args;
  with_lse.need_lse = true;
  auto [out, lse, lse_low] = forward(with_lse);
  torch::autograd::set_history(out, node);
  torch::autograd::set_history(lse, node);
  node->save_results(out, lse, lse_low);
  return {out, lse, lse_low};
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  m.impl("attention_forward", xformers::ops::AttentionForward::entry<xformers::ops::forward_autograd>);
  for (const char* name : {"attention_backward", "attention_backward_stacked"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());  // refuses double backward
  }
}
