#include "xformers/nn/feedforward/linear24.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/relu.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/linear.h>

#include <cmath>

#include "xformers/nn/optional.h"
#include "xformers/ops/sparse24/sparse24.h"
#include "xformers/ops/sparse24/sparse24_op.h"

namespace xformers::nn {
namespace {

void check_rule(const char* where, const std::string& algo, const std::string& gradient) {
  ops::to_sparse24_rule(where, algo);
  ops::check_sparse24_gradient(where, gradient);
}

}  // namespace

Linear24Impl::Linear24Impl(const Linear24Options& options_arg) : options(options_arg) {
  check_rule("Linear24", options.algo, options.gradient);
  ops::to_sparse24_backend("Linear24", options.backend);
  Linear24Impl::reset();
}

void Linear24Impl::reset() {
  if (frozen()) {  // a copy of one that is
    packed = register_buffer("packed", at::empty_like(packed));
    meta = register_buffer("meta", at::empty_like(meta));
  } else {
    weight = register_parameter("weight", at::empty({options.out_features, options.in_features}));
    torch::nn::init::kaiming_uniform_(weight, std::sqrt(5.0));
  }
  bias = register_parameter("bias", options.bias ? at::empty({options.out_features}) : at::Tensor(),
                            options.bias && !frozen());
  if (!bias.defined()) return;
  const double bound = options.in_features > 0 ? 1 / std::sqrt(static_cast<double>(options.in_features)) : 0;
  torch::nn::init::uniform_(bias, -bound, bound);
}

at::Tensor Linear24Impl::forward(const at::Tensor& x) {
  if (!frozen()) {
    return ops::sparse24_linear(x, weight, to_optional(bias), options.algo, options.gradient, options.backend);
  }
  const ops::Sparse24Matrix matrix{
      .packed = packed, .meta = meta, .rows = options.out_features, .cols = options.in_features};
  return ops::sparse24_linear(x, matrix, to_optional(bias), options.backend);
}

void Linear24Impl::freeze() {
  if (frozen()) return;
  const at::NoGradGuard no_grad;
  const ops::Sparse24Matrix matrix = ops::sparsify24_one_way(weight, options.algo, options.backend);
  packed = register_buffer("packed", matrix.packed);
  meta = register_buffer("meta", matrix.meta);
  parameters_.erase("weight");
  weight = at::Tensor();
  if (bias.defined()) bias.set_requires_grad(false);
}

MLP24Impl::MLP24Impl(const MLP24Options& options_arg) : options(options_arg) {
  if (options.sparsity != "weights" && options.sparsity != "activations") {
    ops::refuse_sparse24("MLP24", "sparsity is \"" + options.sparsity + "\"", R"("weights" or "activations")", "");
  }
  ops::to_sparse24_activation("MLP24", options.activation, /*gated=*/false);
  check_rule("MLP24", options.algo, options.gradient);
  MLP24Impl::reset();
}

void MLP24Impl::reset() {
  const int64_t out = options.out_features > 0 ? options.out_features : options.in_features;
  const auto layer = [&](const char* name, int64_t from, int64_t to) {
    torch::nn::AnyModule any;
    if (options.sparsity == "weights") {
      any = torch::nn::AnyModule(Linear24(Linear24Options{from, to, options.bias, options.algo, options.gradient}));
    } else {
      any = torch::nn::AnyModule(torch::nn::Linear(torch::nn::LinearOptions(from, to).bias(options.bias)));
    }
    register_module(name, any.ptr());
    return any;
  };
  fc1 = layer("fc1", options.in_features, options.hidden_features);
  fc2 = layer("fc2", options.hidden_features, out);
}

at::Tensor MLP24Impl::forward(const at::Tensor& x) {
  const auto hidden = fc1.forward<at::Tensor>(x);
  if (options.sparsity == "activations") {
    const auto& last = fc2.get<torch::nn::LinearImpl>();
    return ops::sparse24_activated_linear(hidden, last.weight, to_optional(last.bias), options.activation,
                                          options.algo);
  }
  if (options.activation == "gelu") return fc2.forward<at::Tensor>(at::gelu(hidden, "tanh"));
  if (options.activation == "gelu_exact") return fc2.forward<at::Tensor>(at::gelu(hidden));
  const at::Tensor positive = at::relu(hidden);
  return fc2.forward<at::Tensor>(options.activation == "relu" ? positive : positive.square());
}

}  // namespace xformers::nn
