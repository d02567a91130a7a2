// Layers on 2:4 sparse matrices (ops/sparse24/sparse24.h), with the names and state dicts of the Python ones.
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/pimpl.h>

#include <string>

#include "xformers/nn/layer.h"

namespace xformers::nn {

struct Linear24Options {
  int64_t in_features = 0, out_features = 0;
  bool bias = true;
  std::string algo = "";             // which weights are kept: "", "largest_abs_values_greedy", "causal1122"
  std::string gradient = "24dense";  // of dropped weights: 0; "ste": as of others
  std::string backend = "cutlass";   // "cusparselt": multiples of 128
};

// x [..., in_features] times a weight that is sparsified in every forward, to [..., out_features]. Its state dict is
// that of torch::nn::Linear. Unknown names in the options: c10::Error.
class Linear24Impl : public torch::nn::Cloneable<Linear24Impl>, public TensorLayer {
 public:
  explicit Linear24Impl(const Linear24Options& options);
  void reset() override;  // parameters begin as those of torch::nn::Linear
  at::Tensor forward(const at::Tensor& x) override;
  // Keeps the packed weight alone, buffers `packed` and `meta` (9/16 of the dense one's memory), for inference.
  void freeze();
  bool frozen() const { return packed.defined(); }

  Linear24Options options;
  at::Tensor weight, bias;  // [out, in], undefined once it is frozen; [out], or undefined
  at::Tensor packed, meta;  // once it is frozen
};
TORCH_MODULE(Linear24);

struct MLP24Options {
  int64_t in_features = 0, hidden_features = 0;
  int64_t out_features = 0;  // 0: in_features
  bool bias = true;
  std::string activation = "gelu";   // its tanh form; "relu", "squared_relu", "gelu_exact"
  std::string sparsity = "weights";  // of both layers; "activations": what the second takes, its weights are dense
  std::string algo = "", gradient = "24dense";
};

// fc2(activation(fc1(x))), x [..., in_features]. Both layers are Linear24, or torch::nn::Linear where activations are
// sparse. Parameters fc1.{weight,bias}, fc2.{weight,bias}. Unknown names in the options: c10::Error.
class MLP24Impl : public torch::nn::Cloneable<MLP24Impl>, public TensorLayer {
 public:
  explicit MLP24Impl(const MLP24Options& options);
  void reset() override;
  at::Tensor forward(const at::Tensor& x) override;

  MLP24Options options;
  torch::nn::AnyModule fc1, fc2;
};
TORCH_MODULE(MLP24);

}  // namespace xformers::nn
