// Compositional attention as a module ("compositional"); what its options mean is said in
// xformers.components.attention.CompositionalAttention.
#pragma once

#include <torch/nn/modules/container/sequential.h>

#include "xformers/nn/attention/attention.h"
#include "xformers/nn/attention/input_projection.h"
#include "xformers/nn/registry/option_map.h"

namespace xformers::nn {

struct CompositionalOptions {
  double dropout = 0;
  int64_t dim_model = 0, num_heads = 1;
  std::optional<int64_t> dim_attn{}, num_rules{}, dim_key{}, dim_value{}, dim_selection{};
  bool qk_rule = false, nonlinear = false, q_compose = false, bias = true, causal = false;
  bool use_separate_proj_weight = false;
  static constexpr auto fields() {
    using O = CompositionalOptions;
    return std::tuple{
        field("dropout", &O::dropout),     field("dim_model", &O::dim_model),
        field("num_heads", &O::num_heads), field("dim_attn", &O::dim_attn),
        field("num_rules", &O::num_rules), field("dim_key", &O::dim_key),
        field("dim_value", &O::dim_value), field("dim_selection", &O::dim_selection),
        field("qk_rule", &O::qk_rule),     field("nonlinear", &O::nonlinear),
        field("q_compose", &O::q_compose), field("bias", &O::bias),
        field("causal", &O::causal),       field("use_separate_proj_weight", &O::use_separate_proj_weight)};
  }
};

class CompositionalAttentionImpl : public AttentionModule<CompositionalAttentionImpl, CompositionalOptions> {
 public:
  explicit CompositionalAttentionImpl(const CompositionalOptions& options);
  void reset() override;
  using Attention::forward;
  // [batch, seqlen, dim_model] each, and the result
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const functional::Masks& masks) override;

  InputProjection in_proj_container{nullptr};
  torch::nn::Linear out_proj{nullptr}, value_q{nullptr};
  torch::nn::Linear value_k{nullptr};            // with qk_rule
  torch::nn::Linear score_linear{nullptr};       // else: "score_network",
  torch::nn::Sequential score_network{nullptr};  //   with nonlinear of two layers
};
TORCH_MODULE(CompositionalAttention);

}  // namespace xformers::nn
