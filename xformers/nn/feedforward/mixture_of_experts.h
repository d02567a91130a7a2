// A feed-forward layer of many experts, of which each token visits few (ops/experts/experts.h).
#pragma once

#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/linear.h>

#include <string>

#include "xformers/nn/feedforward/mlp.h"

namespace xformers::nn {

struct MixtureOfExpertsOptions {
  int64_t dim_model = 0;
  double dropout = 0;
  std::string activation = "none";
  int64_t number_of_experts = 1;
  std::string gate = "top_2";                        // or "round_robin"
  std::optional<int64_t> number_of_local_experts{};  // all with one process, else number_of_experts / processes
  int64_t hidden_layer_multiplier = 4;
  int64_t top_k = 2;
  std::optional<double> capacity_factor = 1.0;  // none: nothing is dropped
  bool bias = true;
  // Experts spread over processes: how many, and the name of their c10d group.
  int64_t processes = 1;
  std::string group = "";

  static constexpr auto fields() {
    using O = MixtureOfExpertsOptions;
    return std::tuple{field("dim_model", &O::dim_model),
                      field("dropout", &O::dropout),
                      field("activation", &O::activation),
                      field("number_of_experts", &O::number_of_experts),
                      field("gate", &O::gate),
                      field("number_of_local_experts", &O::number_of_local_experts),
                      field("hidden_layer_multiplier", &O::hidden_layer_multiplier),
                      field("top_k", &O::top_k),
                      field("capacity_factor", &O::capacity_factor),
                      field("bias", &O::bias)};
  }
};

// Parameters gate.wg.weight and moe.experts.<i>.mlp.…, as in Python; there the first is also moe.gate.wg.weight.
class MixtureOfExpertsImpl : public torch::nn::Cloneable<MixtureOfExpertsImpl>, public TensorLayer {
 public:
  explicit MixtureOfExpertsImpl(const MixtureOfExpertsOptions& options);
  void reset() override;

  at::Tensor forward(const at::Tensor& x) override;  // [batch, seqlen, dim_model]

  MixtureOfExpertsOptions options;
  at::Tensor aux_loss;  // of the last call, to be added by the trainer

 private:
  at::Tensor everywhere(const at::Tensor& rows, const at::Tensor& counts);
  at::Tensor here(const at::Tensor& rows, const at::Tensor& counts);

  torch::nn::Linear wg_{nullptr};  // none for "round_robin"
  torch::nn::ModuleList experts_{nullptr};
};
TORCH_MODULE(MixtureOfExperts);

}  // namespace xformers::nn
