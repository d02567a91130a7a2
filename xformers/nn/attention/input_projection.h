// The projections of queries, keys and values as a module.
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <array>

namespace xformers::nn {

struct InputProjectionOptions {
  int64_t in_features = 0;
  int64_t dim_key = 0, dim_value = 0;             // of queries and keys, of values
  std::array<bool, 3> bias = {true, true, true};  // of queries, keys and values
  bool use_separate_proj_weight = true;           // false: one weight, q_proj's, for all three, biases apart
};

// Where query, key and value are one tensor and the projections have one shape, one product gives all three: their
// weights lie side by side in memory (functional/input_projection.h).
class InputProjectionImpl : public torch::nn::Cloneable<InputProjectionImpl> {
 public:
  explicit InputProjectionImpl(const InputProjectionOptions& options);
  void reset() override;
  void to(at::Device device, at::ScalarType dtype, bool non_blocking = false) override;
  void to(at::ScalarType dtype, bool non_blocking = false) override;
  void to(at::Device device, bool non_blocking = false) override;

  // [batch, seqlen, in_features] each -> q, k [batch, seqlen, dim_key], v [batch, seqlen, dim_value]
  std::array<at::Tensor, 3> forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value);

  InputProjectionOptions options;
  torch::nn::Linear q_proj{nullptr}, k_proj{nullptr}, v_proj{nullptr};

 private:
  bool packable() const;
  void pack();  // puts the weights, and the biases, side by side; a shared one is the same memory three times
};
TORCH_MODULE(InputProjection);

}  // namespace xformers::nn
