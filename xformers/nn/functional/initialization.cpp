#include "xformers/nn/functional/initialization.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/erfinv.h>
#include <torch/library.h>

#include <array>
#include <cmath>

#include "xformers/ops/common/check.h"

namespace xformers::nn::functional {
namespace {

constexpr std::array<const char*, 4> kSchemes = {"timm", "vit", "moco", "small"};

struct Fans {
  double in, out;
};
Fans fans_of(const at::Tensor& weight) {
  const double field = weight.dim() > 2 ? static_cast<double>(weight[0][0].numel()) : 1;
  return {static_cast<double>(weight.size(1)) * field, static_cast<double>(weight.size(0)) * field};
}

void uniform_(at::Tensor weight, double bound) { weight.uniform_(-bound, bound); }

// A normal variable of which nothing beyond +-cut standard deviations is drawn: by the inverse of its distribution.
void truncated_normal_(at::Tensor weight, double std, double cut) {
  const double edge = std::erf(cut / std::sqrt(2.0));
  weight.uniform_(-edge, edge).erfinv_().mul_(std * std::sqrt(2.0)).clamp_(-cut * std, cut * std);
}

bool ends_with(const std::string& text, std::string_view end) {
  return text.size() >= end.size() && std::string_view(text).substr(text.size() - end.size()) == end;
}

bool is_feedforward(const std::string& name) {
  const bool wrapped = name.find("wrap_ff") != std::string::npos && !ends_with(name, "norm");
  return wrapped || name.find("feedforward") != std::string::npos;
}

bool is_query_or_key(const std::string& name) { return ends_with(name, "q_proj") || ends_with(name, "k_proj"); }

}  // namespace

WeightInit to_weight_init(const std::string& name) {
  for (size_t i = 0; i < kSchemes.size(); ++i) {
    if (name == kSchemes[i]) return static_cast<WeightInit>(i);
  }
  ops::Check("weight_init")
      .fail("weight_init", "'" + name + "'", "'timm', 'vit', 'moco' or 'small'", "choose one of them");
}

std::vector<bool> init_weights_(const std::vector<WeightRow>& rows, WeightInit scheme, double gain_of_model,
                                bool deepnorm) {
  const at::NoGradGuard no_grad;
  std::vector<bool> filled;
  for (const auto& [kind, name, weight, bias] : rows) {
    const double gain = deepnorm && is_query_or_key(name) ? 1 : gain_of_model;
    const bool like_vit = scheme == WeightInit::kViT || scheme == WeightInit::kSmall;
    const auto [in, out] = fans_of(weight);
    const double xavier = gain * std::sqrt(6 / (in + out));
    bool bias_drawn = false;
    if (kind == "conv2d" && like_vit) {
      // Cutting at two standard deviations leaves 0.87962566 of the std.
      truncated_normal_(weight, std::sqrt(1 / in) / 0.87962566103423978, 2);
    } else if (kind != "linear") {
      filled.push_back(false);
      continue;
    } else if (like_vit && is_feedforward(name)) {
      uniform_(weight, xavier);
      if (bias.defined()) at::Tensor(bias).normal_(0, 1e-6);
      bias_drawn = true;
    } else if (scheme == WeightInit::kSmall) {
      uniform_(weight, gain * std::sqrt(6 / (in + 4 * out)));
    } else if (scheme == WeightInit::kTimm) {
      truncated_normal_(weight, 0.02 * gain, std::sqrt(3.0));
    } else {
      uniform_(weight, xavier);
    }
    if (bias.defined() && !bias_drawn) at::Tensor(bias).zero_();
    filled.push_back(true);
  }
  return filled;
}

namespace {

std::vector<bool> init_weights_by_name(at::TensorList weights, const c10::List<std::optional<at::Tensor>>& biases,
                                       const c10::List<std::string>& kinds, const c10::List<std::string>& names,
                                       std::string_view scheme, double gain, bool deepnorm) {
  std::vector<WeightRow> rows;
  for (size_t i = 0; i < weights.size(); ++i) {
    rows.push_back(
        {kinds.get(i), names.get(i), weights[i], std::optional<at::Tensor>(biases.get(i)).value_or(at::Tensor())});
  }
  return init_weights_(rows, to_weight_init(std::string(scheme)), gain, deepnorm);
}

}  // namespace
}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def(
      "init_weights_(Tensor(a!)[] weights, Tensor?[] biases, str[] kinds, str[] names, str scheme, float gain=1.0, "
      "bool deepnorm=False) -> bool[]",
      [](at::TensorList weights, const c10::List<std::optional<at::Tensor>>& biases,
         const c10::List<std::string>& kinds, const c10::List<std::string>& names, std::string_view scheme, double gain,
         bool deepnorm) {
        c10::List<bool> filled;
        for (bool one :
             xformers::nn::functional::init_weights_by_name(weights, biases, kinds, names, scheme, gain, deepnorm)) {
          filled.push_back(one);
        }
        return filled;
      });
}
