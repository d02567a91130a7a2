#include "xformers/nn/functional/residual.h"

#include <ATen/ops/add.h>
#include <torch/library.h>

#include <cmath>
#include <string>
#include <tuple>

#include "xformers/ops/common/check.h"

namespace xformers::nn::functional {

at::Tensor add_residual(const at::Tensor& update, const at::Tensor& x, double scale) {
  return at::add(update, x, scale);
}

DeepNormCoefficients deepnorm_coefficients(int64_t encoder_layers, int64_t decoder_layers) {
  if (encoder_layers < 0 || decoder_layers < 0) {
    ops::Check("get_deepnorm_coefficients")
        .fail("the number of layers", std::to_string(encoder_layers < 0 ? encoder_layers : decoder_layers),
              "at least 0", "count the layers of each stack");
  }
  const auto n = static_cast<double>(encoder_layers), m = static_cast<double>(decoder_layers);
  if (m == 0)
    return n == 0 ? DeepNormCoefficients{} : DeepNormCoefficients{std::pow(2 * n, 0.25), std::pow(8 * n, -0.25)};
  if (n == 0) return {0, 0, std::pow(2 * m, 0.25), std::pow(8 * m, -0.25)};
  const double joint = std::pow(n * n * n * n * m, 1.0 / 16);
  return {0.81 * joint, 0.87 / joint, std::pow(3 * m, 0.25), std::pow(12 * m, -0.25)};
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def("add_residual(Tensor update, Tensor x, float scale=1.0) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("deepnorm_coefficients(int encoder_layers, int decoder_layers) -> (float, float, float, float)",
        [](int64_t encoder_layers, int64_t decoder_layers) {
          const auto c = xformers::nn::functional::deepnorm_coefficients(encoder_layers, decoder_layers);
          return std::tuple{c.encoder_alpha, c.encoder_beta, c.decoder_alpha, c.decoder_beta};
        });
}
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  m.impl("add_residual", xformers::nn::functional::add_residual);
}
