// How the parameters of a model begin: one function for both languages, so that one seed gives the same weights.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "xformers/kernels/base/error.h"

namespace xformers::nn::functional {

enum class WeightInit { kTimm, kViT, kMoco, kSmall };
WeightInit to_weight_init(const std::string& name);  // "timm", "vit", "moco", "small"

// A parameter of a layer: kind "linear" or "conv2d"; name: the layer's, from the model down.
struct WeightRow {
  std::string kind, name;
  at::Tensor weight;
  at::Tensor bias;  // may be undefined
};

// Fills the rows in order from the default generator of each tensor's device; returns which were (a scheme may have no
// rule for a kind). `gain`: 1, or DeepNorm's beta; `deepnorm`: then the projections of queries and keys have gain 1.
//   vit    feed-forwards: xavier-uniform of `gain`, biases N(0, 1e-6); other linear layers: xavier-uniform, biases 0;
//          convolutions: truncated normal of variance 1 / fan_in (LeCun), biases 0
//   small  as vit, but other linear layers uniform within gain sqrt(6 / (fan_in + 4 fan_out)) ("Transformers without
//          Tears", Nguyen and Salazar, arXiv:1910.05895)
//   timm   linear layers: normal of std 0.02 gain, cut at sqrt(3) std; biases 0
//   moco   linear layers: uniform within gain sqrt(6 / (fan_in + fan_out)); biases 0
// A feed-forward is a layer with `wrap_ff` in its name that does not end in "norm", or with `feedforward`.
std::vector<bool> init_weights_(const std::vector<WeightRow>& rows, WeightInit scheme, double gain, bool deepnorm);

}  // namespace xformers::nn::functional

// Their names outside of this folder.
namespace xformers::nn {
using functional::init_weights_;
using functional::to_weight_init;
using functional::WeightInit;
using functional::WeightRow;
}  // namespace xformers::nn
