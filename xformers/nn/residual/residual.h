// Paths around layers: residual additions and norms, before, after, or scaled.
#pragma once

#include <torch/nn/module.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace xformers::nn {

enum class ResidualNormStyle {
  kPre,       // x + f(norm(x)): "On Layer Normalization in the Transformer Architecture" (arXiv:2002.04745)
  kPost,      // norm(x + f(x)): "Attention Is All You Need" (arXiv:1706.03762)
  kDeepNorm,  // norm(alpha x + f(x)): "DeepNet" (Wang et al., arXiv:2203.00555)
};
ResidualNormStyle to_residual_norm_style(const std::string& name);  // "pre", "post", "deepnorm"

// A layer of several inputs, such as query, key and value, or of one. Its parameters are those of `module`.
struct WrappedLayer {
  using Call = std::function<at::Tensor(const std::vector<at::Tensor>& inputs)>;
  std::shared_ptr<torch::nn::Module> module;
  Call call;
  Call update{};  // of a residual path: what is added to inputs[0] scale; else null
  double scale = 1;
};

// Norms by name: "layernorm" is FusedLayerNorm (eps 1e-6) with fused, else torch::nn::LayerNorm (eps 1e-5); "skip" is
// none.
struct NormLayer {
  std::shared_ptr<torch::nn::Module> module;  // null: none
  std::function<at::Tensor(const at::Tensor&)> call;
  // Of update + scale x, in one pass with the sum; null: the sum is made first.
  std::function<at::Tensor(const at::Tensor& update, const at::Tensor& x, double scale)> call_on_sum{};
};
NormLayer build_norm(int64_t dim, const std::string& name, bool fused = true);

// The three layers, whose parameters have the names of the Python ones: layer.…; norm.… and sublayer.….
// inputs[0] scale + layer(inputs)
WrappedLayer residual(WrappedLayer layer, double scale = 1);
// layer(norm(inputs)): every input normalised, once where all are one tensor.
WrappedLayer pre_norm(NormLayer norm, WrappedLayer layer);
// norm(layer(inputs)); a residual path and a norm that can take it are one pass.
WrappedLayer post_norm(NormLayer norm, WrappedLayer layer);

}  // namespace xformers::nn
