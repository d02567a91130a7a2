// Residual paths, as functions; also torch.ops.xformers.<name>.
#pragma once

#include <ATen/core/Tensor.h>

namespace xformers::nn::functional {

// update + scale x, in one pass.
at::Tensor add_residual(const at::Tensor& update, const at::Tensor& x, double scale = 1);

// DeepNorm's residual scale alpha, norm(alpha x + f(x)), and the gain beta of its weights' initialisation, for a model
// of so many encoder and decoder layers; 0 for a stack without layers. From "DeepNet" (Wang et al., arXiv:2203.00555):
//   encoder alone: alpha = (2 N)^(1/4), beta = (8 N)^(-1/4); decoder alone: the same of M
//   both: encoder alpha = 0.81 (N^4 M)^(1/16), beta = 0.87 (N^4 M)^(-1/16); decoder alpha = (3 M)^(1/4), beta = (12
//   M)^(-1/4)
struct DeepNormCoefficients {
  double encoder_alpha = 0, encoder_beta = 0, decoder_alpha = 0, decoder_beta = 0;
};
DeepNormCoefficients deepnorm_coefficients(int64_t encoder_layers, int64_t decoder_layers);

}  // namespace xformers::nn::functional

// Their names outside of this folder.
namespace xformers::nn {
using functional::add_residual;
using functional::deepnorm_coefficients;
using functional::DeepNormCoefficients;
}  // namespace xformers::nn
