#include "xformers/nn/attention/mechanisms.h"

#include <ATen/ops/empty.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/activation.h>

#include <cmath>

#include "xformers/nn/functional/favor.h"
#include "xformers/nn/functional/fourier_mix.h"
#include "xformers/nn/functional/lambda.h"
#include "xformers/nn/functional/linformer.h"
#include "xformers/nn/functional/nystrom.h"
#include "xformers/nn/functional/orthoformer.h"
#include "xformers/nn/functional/scaled_dot_product.h"
#include "xformers/nn/functional/token_grid.h"
#include "xformers/nn/optional.h"

namespace xformers::nn {
namespace {

void require_positive(const char* where, const char* name, int64_t value) {
  if (value < 1) ops::Check(where).fail(name, std::to_string(value), "at least 1", "give the option a value");
}

}  // namespace

at::Tensor ScaledDotProductImpl::forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                         const functional::Masks& masks) {
  return functional::scaled_dot_product(
      {q, k, v, masks.att_mask, masks.key_padding_mask, options.causal || masks.causal, dropout()});
}

LinformerAttentionImpl::LinformerAttentionImpl(const LinformerOptions& options_arg) : AttentionModule(options_arg) {
  require_positive("linformer", "seq_len", options.seq_len);
  if (options.k == 0) options.k = std::max<int64_t>(options.seq_len / 4, 1);
  flags.requires_same_k_q_dimensions = true;
  flags.supports_attention_mask = false;
  LinformerAttentionImpl::reset();
}

void LinformerAttentionImpl::reset() {
  const auto linear = [&] {
    return torch::nn::Linear(torch::nn::LinearOptions(options.seq_len, options.k).bias(false));
  };
  E = register_module("E", linear());
  F = register_module("F", linear());
}

at::Tensor LinformerAttentionImpl::forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                           const functional::Masks&) {
  return functional::linformer_attention({q, k, v, E->weight, F->weight, dropout()});
}

NystromAttentionImpl::NystromAttentionImpl(const NystromOptions& options_arg) : AttentionModule(options_arg) {
  require_positive("nystrom", "num_landmarks", options.num_landmarks);
  flags.requires_same_k_q_dimensions = true;
  flags.supports_attention_mask = false;
  flags.supports_key_padding_mask = true;
  NystromAttentionImpl::reset();
}

void NystromAttentionImpl::reset() {
  if (!options.conv_kernel_size) return;
  const int64_t heads = options.num_heads, kernel = *options.conv_kernel_size;
  skip_connection =
      register_module("skip_connection",
                      torch::nn::Conv2d(torch::nn::Conv2dOptions(heads, heads, {kernel, 1}).groups(heads).bias(false)));
}

at::Tensor NystromAttentionImpl::forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                         const functional::Masks& masks) {
  return functional::nystrom_attention(
      {.q = q,
       .k = k,
       .v = v,
       .key_padding_mask = masks.key_padding_mask,
       .num_landmarks = options.num_landmarks,
       .causal = options.causal || masks.causal,
       .use_razavi_pinverse = options.use_razavi_pinverse,
       .pinverse_original_init = options.pinverse_original_init,
       .inv_iterations = options.inv_iterations,
       .skip_weight = skip_connection ? ops::OptionalTensor(skip_connection->weight) : std::nullopt,
       .p = dropout()});
}

OrthoFormerAttentionImpl::OrthoFormerAttentionImpl(const OrthoformerOptions& options_arg)
    : AttentionModule(options_arg) {
  require_positive("orthoformer", "num_landmarks", options.num_landmarks);
  flags.supports_attention_mask = false;
}

at::Tensor OrthoFormerAttentionImpl::forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                             const functional::Masks&) {
  return functional::orthoformer_attention(
      {q, k, v, options.num_landmarks, options.subsample_fraction, options.landmark_selection, dropout()});
}

FavorAttentionImpl::FavorAttentionImpl(const FavorOptions& options_arg) : AttentionModule(options_arg) {
  const ops::Check check("favor");
  const std::string& map = options.feature_map_type;
  if (map != "sm_reg" && map != "sm_hyp" && map != "sm_orf") {
    check.fail("feature_map_type", map, "sm_reg, sm_hyp or sm_orf", "choose one of these");
  }
  if (!options.dim_features) {
    if (!options.dim_head) check.fail("dim_features", "None beside no dim_head", "one of them", "give dim_head");
    const auto dim = static_cast<double>(*options.dim_head);
    const auto count = static_cast<int64_t>(std::ceil(dim * (1 + std::log2(dim))));
    options.dim_features = count + count % 2;
  }
  if (map != "sm_orf" && *options.dim_features % 2 != 0) {
    check.fail("dim_features", std::to_string(*options.dim_features), "an even number",
               "add one; half of the features belong to each sign");
  }
  flags.supports_attention_mask = false;
}

at::Tensor FavorAttentionImpl::forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                       const functional::Masks& masks) {
  const bool paired = options.feature_map_type != "sm_orf";
  const int64_t head_dim = k.size(-1);
  const bool worn_out = options.iter_before_redraw && calls_ >= *options.iter_before_redraw;
  if (!omega.defined() || worn_out || omega.device() != k.device() || omega.size(0) != head_dim) {
    omega = functional::draw_omega(head_dim, *options.dim_features / (paired ? 2 : 1),
                                   options.feature_map_type == "sm_reg", k.device());
    calls_ = 0;
  }
  ++calls_;
  const at::Tensor out = functional::favor_attention({q, k, v, omega, paired, options.causal || masks.causal});
  return functional::drop(out, dropout());
}

FourierMixImpl::FourierMixImpl(const FourierMixOptions& options_arg) : AttentionModule(options_arg) {
  flags.requires_input_projection = false;
  flags.supports_attention_mask = false;
}

at::Tensor FourierMixImpl::forward(const at::Tensor& q, const at::Tensor&, const at::Tensor&,
                                   const functional::Masks&) {
  return functional::drop(functional::fourier_mix({q}), dropout());
}

LambdaLayerImpl::LambdaLayerImpl(const LambdaOptions& options_arg) : AttentionModule(options_arg) {
  require_positive("lambda", "seq_len", options.seq_len);
  require_positive("lambda", "dim_head", options.dim_head);
  flags.requires_same_k_q_dimensions = true;
  flags.supports_attention_mask = false;
  LambdaLayerImpl::reset();
}

void LambdaLayerImpl::reset() {
  rel_pos_emb = register_parameter("rel_pos_emb", at::empty({2 * options.seq_len - 1, options.dim_head}));
  torch::nn::init::normal_(rel_pos_emb, 0, std::pow(static_cast<double>(options.dim_head), -0.5));
}

at::Tensor LambdaLayerImpl::forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                    const functional::Masks&) {
  return functional::drop(functional::lambda_layer({q, k, v, rel_pos_emb, options.paper_position}), dropout());
}

PoolingImpl::PoolingImpl(const PoolingOptions& options_arg) : AttentionModule(options_arg) {
  flags = {.requires_input_projection = false,
           .requires_skip_multi_head = true,
           .requires_squared_context = true,
           .supports_attention_mask = false};
}

at::Tensor PoolingImpl::forward(const at::Tensor& q, const at::Tensor&, const at::Tensor&, const functional::Masks&) {
  const at::Tensor out =
      functional::pooling_attention({q, options.pool_size, options.stride, options.padding.value_or(-1)});
  return functional::drop(out, dropout());
}

LKAImpl::LKAImpl(int64_t dim_arg) : dim(dim_arg) { LKAImpl::reset(); }

void LKAImpl::reset() {
  using torch::nn::Conv2d, torch::nn::Conv2dOptions;
  conv0 = register_module("conv0", Conv2d(Conv2dOptions(dim, dim, 5).padding(2).groups(dim)));
  conv_spatial = register_module("conv_spatial", Conv2d(Conv2dOptions(dim, dim, 7).padding(9).groups(dim).dilation(3)));
  conv1 = register_module("conv1", Conv2d(Conv2dOptions(dim, dim, 1)));
}

at::Tensor LKAImpl::forward(const at::Tensor& x) { return x * conv1(conv_spatial(conv0(x))); }

VisualImpl::VisualImpl(const VisualOptions& options_arg) : AttentionModule(options_arg) {
  require_positive("visual", "dim_model", options.dim_model);
  flags = {.requires_input_projection = false,
           .requires_skip_multi_head = true,
           .requires_squared_context = true,
           .supports_attention_mask = false};
  VisualImpl::reset();
}

void VisualImpl::reset() {
  const auto mix = [&] { return torch::nn::Conv2d(torch::nn::Conv2dOptions(options.dim_model, options.dim_model, 1)); };
  block = register_module("block", torch::nn::Sequential(mix(), torch::nn::GELU(), LKA(options.dim_model), mix()));
}

at::Tensor VisualImpl::forward(const at::Tensor& q, const at::Tensor&, const at::Tensor&, const functional::Masks&) {
  const auto& first = *block[0]->as<torch::nn::Conv2d>();
  const auto& lka = *block[2]->as<LKA>();
  const auto& last = *block[3]->as<torch::nn::Conv2d>();
  const at::Tensor out = functional::visual_attention({q, first.weight, first.bias, lka.conv0->weight, lka.conv0->bias,
                                                       lka.conv_spatial->weight, lka.conv_spatial->bias,
                                                       lka.conv1->weight, lka.conv1->bias, last.weight, last.bias});
  return functional::drop(out, dropout());
}

}  // namespace xformers::nn
