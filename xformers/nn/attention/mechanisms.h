// The attention mechanisms as modules, under the names, options and state dicts of the Python ones
// (xformers.components. attention says what each option means). attention_registry() builds them by name.
#pragma once

#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include "xformers/nn/attention/attention.h"
#include "xformers/nn/registry/option_map.h"

namespace xformers::nn {

// "scaled_dot_product"
struct ScaledDotProductOptions {
  double dropout = 0;
  bool causal = false;
  static constexpr auto fields() {
    using O = ScaledDotProductOptions;
    return std::tuple{field("dropout", &O::dropout), field("causal", &O::causal)};
  }
};
class ScaledDotProductImpl : public AttentionModule<ScaledDotProductImpl, ScaledDotProductOptions> {
 public:
  explicit ScaledDotProductImpl(const ScaledDotProductOptions& options = {}) : AttentionModule(options) {}
  using Attention::forward;
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const functional::Masks& masks) override;
};
TORCH_MODULE(ScaledDotProduct);

// "linformer"
struct LinformerOptions {
  double dropout = 0;
  int64_t seq_len = 0;  // the longest
  int64_t k = 0;        // 0: seq_len / 4
  static constexpr auto fields() {
    using O = LinformerOptions;
    return std::tuple{field("dropout", &O::dropout), field("seq_len", &O::seq_len), field("k", &O::k)};
  }
};
class LinformerAttentionImpl : public AttentionModule<LinformerAttentionImpl, LinformerOptions> {
 public:
  explicit LinformerAttentionImpl(const LinformerOptions& options);
  void reset() override;
  using Attention::forward;
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const functional::Masks& masks) override;

  torch::nn::Linear E{nullptr}, F{nullptr};  // [k, seq_len]
};
TORCH_MODULE(LinformerAttention);

// "nystrom"
struct NystromOptions {
  double dropout = 0;
  int64_t num_heads = 1, num_landmarks = 64;
  bool causal = false, use_razavi_pinverse = true, pinverse_original_init = false;
  int64_t inv_iterations = 6;
  std::optional<int64_t> conv_kernel_size{};
  static constexpr auto fields() {
    using O = NystromOptions;
    return std::tuple{field("dropout", &O::dropout),
                      field("num_heads", &O::num_heads),
                      field("num_landmarks", &O::num_landmarks),
                      field("causal", &O::causal),
                      field("use_razavi_pinverse", &O::use_razavi_pinverse),
                      field("pinverse_original_init", &O::pinverse_original_init),
                      field("inv_iterations", &O::inv_iterations),
                      field("conv_kernel_size", &O::conv_kernel_size)};
  }
};
class NystromAttentionImpl : public AttentionModule<NystromAttentionImpl, NystromOptions> {
 public:
  explicit NystromAttentionImpl(const NystromOptions& options);
  void reset() override;
  using Attention::forward;
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const functional::Masks& masks) override;

  torch::nn::Conv2d skip_connection{nullptr};  // with conv_kernel_size: [num_heads, 1, kernel, 1]
};
TORCH_MODULE(NystromAttention);

// "orthoformer"
struct OrthoformerOptions {
  double dropout = 0;
  int64_t num_landmarks = 32;
  double subsample_fraction = 1;
  std::string landmark_selection = "orthogonal";
  static constexpr auto fields() {
    using O = OrthoformerOptions;
    return std::tuple{field("dropout", &O::dropout), field("num_landmarks", &O::num_landmarks),
                      field("subsample_fraction", &O::subsample_fraction),
                      field("landmark_selection", &O::landmark_selection)};
  }
};
class OrthoFormerAttentionImpl : public AttentionModule<OrthoFormerAttentionImpl, OrthoformerOptions> {
 public:
  explicit OrthoFormerAttentionImpl(const OrthoformerOptions& options = {});
  using Attention::forward;
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const functional::Masks& masks) override;
};
TORCH_MODULE(OrthoFormerAttention);

// "favor"
struct FavorOptions {
  double dropout = 0;
  bool causal = false;
  std::optional<int64_t> dim_features{},
      dim_head{};  // one of them; features by default: even, from dim_head (1 + log2)
  std::optional<int64_t> iter_before_redraw{};
  std::string feature_map_type = "sm_reg";  // or "sm_hyp", "sm_orf"
  static constexpr auto fields() {
    using O = FavorOptions;
    return std::tuple{field("dropout", &O::dropout),
                      field("causal", &O::causal),
                      field("dim_features", &O::dim_features),
                      field("dim_head", &O::dim_head),
                      field("iter_before_redraw", &O::iter_before_redraw),
                      field("feature_map_type", &O::feature_map_type)};
  }
};
class FavorAttentionImpl : public AttentionModule<FavorAttentionImpl, FavorOptions> {
 public:
  explicit FavorAttentionImpl(const FavorOptions& options);
  using Attention::forward;
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const functional::Masks& masks) override;

  at::Tensor omega;  // [head_dim, directions], drawn at the first call; in no state dict

 private:
  int64_t calls_ = 0;
};
TORCH_MODULE(FavorAttention);

// "fourier_mix"
struct FourierMixOptions {
  double dropout = 0;
  static constexpr auto fields() { return std::tuple{field("dropout", &FourierMixOptions::dropout)}; }
};
class FourierMixImpl : public AttentionModule<FourierMixImpl, FourierMixOptions> {
 public:
  explicit FourierMixImpl(const FourierMixOptions& options = {});
  using Attention::forward;
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const functional::Masks& masks) override;
};
TORCH_MODULE(FourierMix);

// "lambda"
struct LambdaOptions {
  double dropout = 0;
  int64_t seq_len = 0, dim_head = 0;
  bool paper_position = false;
  static constexpr auto fields() {
    using O = LambdaOptions;
    return std::tuple{field("dropout", &O::dropout), field("seq_len", &O::seq_len), field("dim_head", &O::dim_head),
                      field("paper_position", &O::paper_position)};
  }
};
class LambdaLayerImpl : public AttentionModule<LambdaLayerImpl, LambdaOptions> {
 public:
  explicit LambdaLayerImpl(const LambdaOptions& options);
  void reset() override;
  using Attention::forward;
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const functional::Masks& masks) override;

  at::Tensor rel_pos_emb;  // [2 * seq_len - 1, dim_head]
};
TORCH_MODULE(LambdaLayer);

// "pooling"
struct PoolingOptions {
  double dropout = 0;
  int64_t pool_size = 3, stride = 1;
  std::optional<int64_t> padding{};
  static constexpr auto fields() {
    using O = PoolingOptions;
    return std::tuple{field("dropout", &O::dropout), field("pool_size", &O::pool_size), field("stride", &O::stride),
                      field("padding", &O::padding)};
  }
};
class PoolingImpl : public AttentionModule<PoolingImpl, PoolingOptions> {
 public:
  explicit PoolingImpl(const PoolingOptions& options = {});
  using Attention::forward;
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const functional::Masks& masks) override;
};
TORCH_MODULE(Pooling);

// "visual"
struct VisualOptions {
  double dropout = 0;
  int64_t dim_model = 0;
  static constexpr auto fields() {
    using O = VisualOptions;
    return std::tuple{field("dropout", &O::dropout), field("dim_model", &O::dim_model)};
  }
};
class LKAImpl : public torch::nn::Cloneable<LKAImpl> {
 public:
  explicit LKAImpl(int64_t dim);
  void reset() override;
  at::Tensor forward(const at::Tensor& x);  // [batch, dim, height, width]

  int64_t dim;
  torch::nn::Conv2d conv0{nullptr}, conv_spatial{nullptr}, conv1{nullptr};
};
TORCH_MODULE(LKA);
class VisualImpl : public AttentionModule<VisualImpl, VisualOptions> {
 public:
  explicit VisualImpl(const VisualOptions& options);
  void reset() override;
  using Attention::forward;
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const functional::Masks& masks) override;

  torch::nn::Sequential block{nullptr};  // convolution, gelu, LKA, convolution
};
TORCH_MODULE(Visual);

}  // namespace xformers::nn
