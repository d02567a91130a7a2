#include "xformers/nn/residual/residual.h"

#include <torch/nn/modules/normalization.h>

#include "xformers/nn/functional/residual.h"
#include "xformers/nn/norm/layer_norm.h"
#include "xformers/ops/common/check.h"

namespace xformers::nn {
namespace {

std::shared_ptr<torch::nn::Module> with_norm(const char* name, const NormLayer& norm, const WrappedLayer& layer) {
  auto module = std::make_shared<torch::nn::Module>(name);
  if (norm.module) module->register_module("norm", norm.module);
  module->register_module("sublayer", layer.module);
  return module;
}

}  // namespace

ResidualNormStyle to_residual_norm_style(const std::string& name) {
  if (name == "pre") return ResidualNormStyle::kPre;
  if (name == "post") return ResidualNormStyle::kPost;
  if (name == "deepnorm") return ResidualNormStyle::kDeepNorm;
  ops::Check("residual_norm_style")
      .fail("residual_norm_style", "'" + name + "'", "'pre', 'post' or 'deepnorm'", "choose one of them");
}

NormLayer build_norm(int64_t dim, const std::string& name, bool fused) {
  if (name == "skip") return {nullptr, [](const at::Tensor& x) { return x; }};
  if (name != "layernorm") {
    ops::Check("normalization").fail("normalization", "'" + name + "'", "'layernorm' or 'skip'", "choose one of them");
  }
  if (!fused) {
    const torch::nn::LayerNorm norm(torch::nn::LayerNormOptions({dim}));
    return {norm.ptr(), [norm = norm.ptr()](const at::Tensor& x) { return norm->forward(x); }};
  }
  const FusedLayerNorm norm(dim);
  return {norm.ptr(), [norm = norm.ptr()](const at::Tensor& x) { return norm->forward(x); },
          [norm = norm.ptr()](const at::Tensor& update, const at::Tensor& x, double scale) {
            return norm->forward_sum(update, x, scale);
          }};
}

WrappedLayer residual(WrappedLayer layer, double scale) {
  auto module = std::make_shared<torch::nn::Module>("Residual");
  module->register_module("layer", layer.module);
  const auto call = [update = layer.call, scale](const std::vector<at::Tensor>& inputs) {
    return add_residual(update(inputs), inputs.at(0), scale);
  };
  return {module, call, std::move(layer.call), scale};
}

WrappedLayer pre_norm(NormLayer norm, WrappedLayer layer) {
  auto module = with_norm("PreNorm", norm, layer);
  return {module, [norm = std::move(norm.call), call = std::move(layer.call)](const std::vector<at::Tensor>& inputs) {
            std::vector<at::Tensor> normalised;
            for (const at::Tensor& x : inputs) {
              const bool again = !normalised.empty() && x.is_same(inputs[0]);
              normalised.push_back(again ? normalised[0] : norm(x));
            }
            return call(normalised);
          }};
}

WrappedLayer post_norm(NormLayer norm, WrappedLayer layer) {
  auto module = with_norm("PostNorm", norm, layer);
  if (layer.update && norm.call_on_sum) {
    return {module, [norm = std::move(norm.call_on_sum), update = std::move(layer.update), scale = layer.scale](
                        const std::vector<at::Tensor>& inputs) { return norm(update(inputs), inputs.at(0), scale); }};
  }
  return {module, [norm = std::move(norm.call), call = std::move(layer.call)](const std::vector<at::Tensor>& inputs) {
            return norm(call(inputs));
          }};
}

}  // namespace xformers::nn
