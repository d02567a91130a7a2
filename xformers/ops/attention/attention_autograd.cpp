// Gradients of attention_forward: a graph node of our own, which costs a call less than torch::autograd::Function and
// also works under torch.func and compiled autograd. Calls that need no gradient leave no trace of it.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/library.h>

#include "xformers/ops/attention/attention_check.h"

namespace xformers::ops {
namespace {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// All that the gradients depend on.
struct Saved {
  at::Tensor query, key, value, attn_bias, cu_seqlens_q, cu_seqlens_k, seqused_k, philox_state, out, lse;
  c10::SymInt window_left, window_right;
  bool bottom_right = false;
  std::optional<double> scale;
  double p = 0;
  bool need_bias_grad = false;

  template <class Self, class Fn>
  static void for_each_field(Self& self, const Fn& fn) {
    for (auto* tensor : {&self.query, &self.key, &self.value, &self.attn_bias, &self.cu_seqlens_q, &self.cu_seqlens_k,
                         &self.seqused_k, &self.philox_state, &self.out, &self.lse}) {
      fn(*tensor);
    }
    fn(self.window_left);
    fn(self.window_right);
    fn(self.bottom_right);
    fn(self.scale);
    fn(self.p);
    fn(self.need_bias_grad);
  }
};

// (grad_out, grad_lse), each possibly undefined -> gradients of query, key, value, attn_bias
variable_list gradients(const variable_list& grads, const Saved& s) {
  variable_list result(4);
  if (!grads[0].defined() && !grads[1].defined()) return result;
  const auto optional = [](const at::Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; };
  std::tie(result[0], result[1], result[2], result[3]) =
      attention_backward_op().call(grads[0].defined() ? grads[0] : at::zeros_like(s.out), s.query, s.key, s.value,
                                   s.out, s.lse, optional(s.attn_bias), s.window_left, s.window_right, s.bottom_right,
                                   optional(s.cu_seqlens_q), optional(s.cu_seqlens_k), optional(s.seqused_k), s.scale,
                                   s.p, optional(s.philox_state), optional(grads[1]), s.need_bias_grad);
  if (!s.need_bias_grad) result[3] = at::Tensor();
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
    args.collect(window_left_);
    args.collect(window_right_);
    args.collect(bottom_right_);
    args.collect(scale_);
    args.collect(p_);
  }

  // ... then the call that goes into such a graph: gradients() on stand-ins for the saved tensors.
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    namespace dynamo = torch::dynamo::autograd;
    for_each_tensor([&](SavedVariable& tensor, bool) { swap.before(tensor); });
    swap.before(window_left_);
    swap.before(window_right_);
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
    swap.after(window_left_);
    swap.after(window_right_);
    for_each_tensor([&](SavedVariable& tensor, bool) { swap.after(tensor); });
    return result;
  }

  template <class Fn>
  void for_each_tensor(const Fn& fn) {
    for (SavedVariable* tensor :
         {&query_, &key_, &value_, &attn_bias_, &cu_seqlens_q_, &cu_seqlens_k_, &seqused_k_, &philox_state_}) {
      fn(*tensor, /*is_output=*/false);
    }
    fn(out_, /*is_output=*/true);
    fn(lse_, /*is_output=*/true);
  }

  Saved unpack() {
    return {.query = query_.unpack(),
            .key = key_.unpack(),
            .value = value_.unpack(),
            .attn_bias = attn_bias_.unpack(),
            .cu_seqlens_q = cu_seqlens_q_.unpack(),
            .cu_seqlens_k = cu_seqlens_k_.unpack(),
            .seqused_k = seqused_k_.unpack(),
            .philox_state = philox_state_.unpack(),
            .out = out_.unpack(shared_from_this()),
            .lse = lse_.unpack(shared_from_this()),
            .window_left = window_left_,
            .window_right = window_right_,
            .bottom_right = bottom_right_,
            .scale = scale_,
            .p = p_,
            .need_bias_grad = task_should_compute_output(3)};
  }

  SavedVariable query_, key_, value_, attn_bias_, cu_seqlens_q_, cu_seqlens_k_, seqused_k_, philox_state_, out_, lse_;
  c10::SymInt window_left_, window_right_;
  bool bottom_right_ = false;
  std::optional<double> scale_;
  double p_ = 0;
};

// A tangent would get lost without a word; the kernels compute reverse-mode gradients only.
void refuse_forward_mode(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const OptionalTensor& attn_bias) {
  using torch::autograd::isFwGradDefined;
  TORCH_CHECK_NOT_IMPLEMENTED(
      !isFwGradDefined(query) && !isFwGradDefined(key) && !isFwGradDefined(value) && !isFwGradDefined(attn_bias),
      "attention: forward-mode AD is asked for, expected reverse mode.  Fix: use torch.autograd.grad or "
      "torch.func.vjp.");
}

std::tuple<at::Tensor, at::Tensor> forward_autograd(const at::Tensor& query, const at::Tensor& key,
                                                    const at::Tensor& value, const OptionalTensor& attn_bias,
                                                    c10::SymInt window_left, c10::SymInt window_right,
                                                    bool bottom_right, const OptionalTensor& cu_seqlens_q,
                                                    const OptionalTensor& cu_seqlens_k, const OptionalTensor& seqused_k,
                                                    std::optional<double> scale, double p,
                                                    const OptionalTensor& philox_state, bool need_lse) {
  check_same_device(query, key, value);  // here, since below the dispatcher has already chosen one of the devices
  refuse_forward_mode(query, key, value, attn_bias);
  std::shared_ptr<AttentionNode> node;
  if (torch::autograd::compute_requires_grad(query, key, value, attn_bias)) {
    node = std::shared_ptr<AttentionNode>(new AttentionNode(), torch::autograd::deleteNode);
    node->set_next_edges(torch::autograd::collect_next_edges(query, key, value, attn_bias));
    const auto save = [](const OptionalTensor& t) { return SavedVariable(t.value_or(at::Tensor()), false); };
    node->query_ = SavedVariable(query, false);
    node->key_ = SavedVariable(key, false);
    node->value_ = SavedVariable(value, false);
    node->attn_bias_ = save(attn_bias);
    node->cu_seqlens_q_ = save(cu_seqlens_q);
    node->cu_seqlens_k_ = save(cu_seqlens_k);
    node->seqused_k_ = save(seqused_k);
    node->philox_state_ = save(philox_state);
    node->window_left_ = window_left;
    node->window_right_ = window_right;
    node->bottom_right_ = bottom_right;
    node->scale_ = scale;
    node->p_ = p;
  }
  auto [out, lse] = [&] {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return attention_forward_op().call(query, key, value, attn_bias, window_left, window_right, bottom_right,
                                       cu_seqlens_q, cu_seqlens_k, seqused_k, scale, p, philox_state,
                                       need_lse || node != nullptr);
  }();
  if (node) {
    torch::autograd::set_history(out, node);
    torch::autograd::set_history(lse, node);
    node->out_ = SavedVariable(out, /*is_output=*/true);
    node->lse_ = SavedVariable(lse, /*is_output=*/true);
  }
  return {out, lse};
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  m.impl("attention_forward", xformers::ops::forward_autograd);
  m.impl("attention_backward", torch::autograd::autogradNotImplementedFallback());  // refuses double backward
}
