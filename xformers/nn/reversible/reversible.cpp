#include "xformers/nn/reversible/reversible.h"

#include <ATen/ops/cat.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/nn/modules/container/modulelist.h>

#include <map>
#include <set>

#include "xformers/nn/recompute/as_before.h"
#include "xformers/ops/common/check.h"
#include "xformers/ops/common/node_pointer.h"

namespace xformers::nn {
namespace {

using torch::autograd::variable_list;
using Pair = ReversibleSequenceImpl::Pair;

const std::vector<at::Tensor> kNone;

// The whole stack as one node: of x, then of the parameters, then of the further arguments.
class ReversibleNode : public torch::autograd::Node {
 public:
  ReversibleNode(std::vector<Pair> pairs, int64_t split_dim, std::vector<at::Tensor> parameters, ReversibleRoute route,
                 at::Device device)
      : pairs_(std::move(pairs)),
        split_dim_(split_dim),
        parameters_(std::move(parameters)),
        route_(route),
        device_(device) {}

  std::string name() const override { return "XformersReversibleBackward"; }
  void release_variables() override {
    output_.reset_data();
    arguments_.clear();
  }

  at::Tensor run(at::Tensor x, const std::vector<at::Tensor>& arguments) {
    const at::NoGradGuard no_grad;
    const AsBefore without_cache(autocast_);
    for (const auto& [f, g] : pairs_) {
      const std::vector<at::Tensor> halves = x.chunk(2, split_dim_);
      random_.push_back(RandomState::of(device_));
      const at::Tensor y1 = halves[0] + f.call(halves[1], route_.f ? arguments : kNone);
      random_.push_back(RandomState::of(device_));
      x = at::cat({y1, halves[1] + g.call(y1, route_.g ? arguments : kNone)}, split_dim_);
    }
    return x;
  }
  void save(const at::Tensor& output, const std::vector<at::Tensor>& arguments) {
    output_ = torch::autograd::SavedVariable(output, /*is_output=*/true);
    for (const at::Tensor& argument : arguments) arguments_.emplace_back(argument, /*is_output=*/false);
  }

  variable_list apply(variable_list&& grads) override {
    at::Tensor y = output_.unpack(getptr()).detach(), dy = grads[0];
    std::map<c10::TensorImpl*, at::Tensor> found;
    std::vector<at::Tensor> arguments;  // leaves of their own, whose gradients go on to whatever made them
    for (const torch::autograd::SavedVariable& saved : arguments_) {
      const at::Tensor argument = saved.unpack();
      arguments.push_back(argument.detach().set_requires_grad(argument.requires_grad()));
    }
    const auto &of_f = route_.f ? arguments : kNone, &of_g = route_.g ? arguments : kNone;
    for (size_t i = pairs_.size(); i-- > 0;) {
      const std::vector<at::Tensor> ys = y.chunk(2, split_dim_), dys = dy.chunk(2, split_dim_);
      const auto [x2, dx1] = undo(pairs_[i].second, random_[2 * i + 1], ys[0], of_g, ys[1], dys[0], dys[1], found);
      const auto [x1, dx2] = undo(pairs_[i].first, random_[2 * i], x2, of_f, ys[0], dys[1], dx1, found);
      y = at::cat({x1, x2}, split_dim_);
      dy = at::cat({dx1, dx2}, split_dim_);
    }
    variable_list result{dy};
    for (const at::Tensor& parameter : parameters_) result.push_back(found[parameter.unsafeGetTensorImpl()]);
    for (const at::Tensor& argument : arguments) result.push_back(found[argument.unsafeGetTensorImpl()]);
    return result;
  }

 private:
  // Of result = old + layer(given, arguments): old, and the gradient of given (d_given is what it has from elsewhere).
  std::pair<at::Tensor, at::Tensor> undo(const ReversibleLayer& layer, const RandomState& random,
                                         const at::Tensor& given_arg, const std::vector<at::Tensor>& arguments,
                                         const at::Tensor& result, const at::Tensor& d_given,
                                         const at::Tensor& d_result,
                                         std::map<c10::TensorImpl*, at::Tensor>& found) const {
    const at::AutoGradMode with_grad(true);
    const at::Tensor given = given_arg.detach().requires_grad_();
    at::Tensor update;
    {
      const AsBefore as_before(autocast_, random);
      update = layer.call(given, arguments);
    }
    variable_list leaves{given};
    for (const at::Tensor& parameter : layer.module->parameters()) {
      if (parameter.requires_grad()) leaves.push_back(parameter);
    }
    for (const at::Tensor& argument : arguments) {
      if (argument.requires_grad()) leaves.push_back(argument);
    }
    const variable_list grads = torch::autograd::grad({update}, leaves, {d_result.to(update.scalar_type())},
                                                      /*retain_graph=*/false, /*create_graph=*/false,
                                                      /*allow_unused=*/true);
    const at::NoGradGuard no_grad;
    for (size_t i = 1; i < leaves.size(); ++i) {
      if (!grads[i].defined()) continue;
      at::Tensor& sum = found[leaves[i].unsafeGetTensorImpl()];
      sum = sum.defined() ? sum + grads[i] : grads[i];
    }
    return {result - update.detach(), grads[0].defined() ? d_given + grads[0] : d_given};
  }

  std::vector<Pair> pairs_;
  int64_t split_dim_;
  std::vector<at::Tensor> parameters_;
  ReversibleRoute route_;
  at::Device device_;
  AutocastState autocast_ = AutocastState::now();
  std::vector<RandomState> random_;  // before each f and each g
  torch::autograd::SavedVariable output_;
  std::vector<torch::autograd::SavedVariable> arguments_;
};

}  // namespace

ReversibleSequenceImpl::ReversibleSequenceImpl(std::vector<Pair> pairs, int64_t split_dim)
    : pairs_(std::move(pairs)), split_dim_(split_dim) {
  const auto level = [](torch::nn::Module& parent, const std::string& name) {
    return parent.register_module(name, std::make_shared<torch::nn::Module>(name));
  };
  const auto blocks = level(*this, "blocks");
  for (size_t i = 0; i < pairs_.size(); ++i) {
    const auto block = level(*blocks, std::to_string(i));
    level(*block, "f")->register_module("net", pairs_[i].first.module);
    level(*block, "g")->register_module("net", pairs_[i].second.module);
  }
}

at::Tensor ReversibleSequenceImpl::forward(const at::Tensor& x, const std::vector<at::Tensor>& arguments,
                                           ReversibleRoute route) {
  if (x.size(split_dim_) % 2 != 0) {
    ops::Check("ReversibleSequence")
        .fail("x", ops::describe(x), "an even size along dimension " + std::to_string(split_dim_),
              "concatenate x with itself, as xFormer does");
  }
  std::vector<at::Tensor> leaves;
  std::set<c10::TensorImpl*> seen;
  for (const at::Tensor& parameter : parameters()) {
    if (parameter.requires_grad() && seen.insert(parameter.unsafeGetTensorImpl()).second) leaves.push_back(parameter);
  }
  const auto node = ops::make_node<ReversibleNode>(pairs_, split_dim_, leaves, route, x.device());
  at::Tensor out = node->run(x, arguments);
  leaves.insert(leaves.end(), arguments.begin(), arguments.end());
  if (pairs_.empty() || !torch::autograd::compute_requires_grad(x, at::TensorList(leaves))) return out;
  node->set_next_edges(torch::autograd::collect_next_edges(x, at::TensorList(leaves)));
  torch::autograd::set_history(out, node);
  node->save(out, arguments);
  return out;
}

}  // namespace xformers::nn
