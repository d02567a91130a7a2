#include "xformers/nn/attention/compositional.h"

#include <torch/nn/modules/activation.h>

#include "xformers/nn/functional/compositional.h"
#include "xformers/nn/optional.h"

namespace xformers::nn {
namespace {

void require_multiple(const char* name, int64_t value, int64_t of) {
  if (of > 0 && value > 0 && value % of == 0) return;
  ops::Check("compositional")
      .fail(name, std::to_string(value), "a multiple of " + std::to_string(of),
            "choose another size, or another number of heads or rules");
}

}  // namespace

CompositionalAttentionImpl::CompositionalAttentionImpl(const CompositionalOptions& options_arg)
    : AttentionModule(options_arg) {
  CompositionalOptions& o = options;
  const auto fill = [](std::optional<int64_t>& option, int64_t value) { option = option.value_or(value); };
  require_multiple("dim_model", o.dim_model, o.num_heads);
  fill(o.num_rules, o.num_heads);
  fill(o.dim_attn, o.dim_model);
  fill(o.dim_selection, o.dim_model / o.num_heads);
  fill(o.dim_key, o.dim_model);
  fill(o.dim_value, *o.dim_attn);
  require_multiple("dim_attn", *o.dim_attn, *o.num_rules);
  require_multiple("dim_value", *o.dim_value, *o.num_rules);
  require_multiple("dim_key", *o.dim_key, o.num_heads);
  flags = {.requires_input_projection = false, .requires_skip_multi_head = true};
  CompositionalAttentionImpl::reset();
}

void CompositionalAttentionImpl::reset() {
  const CompositionalOptions& o = options;
  const int64_t selection = *o.dim_selection, dim_rule = *o.dim_value / *o.num_rules;
  const auto linear = [&](int64_t in, int64_t out) {
    return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(o.bias));
  };
  in_proj_container = register_module(
      "in_proj_container",
      InputProjection(InputProjectionOptions{o.dim_model,
                                             *o.dim_key,
                                             *o.dim_value,
                                             {o.bias, o.bias, o.bias},
                                             o.use_separate_proj_weight || *o.dim_key != *o.dim_value}));
  out_proj = register_module("out_proj", linear(o.num_heads * dim_rule, o.dim_model));
  value_q = register_module("value_q", o.q_compose ? linear(*o.dim_key / o.num_heads, selection)
                                                   : linear(o.dim_model, selection * o.num_heads));
  if (o.qk_rule) {
    value_k = register_module("value_k", linear(dim_rule, selection));
  } else if (o.nonlinear) {
    score_network = register_module("score_network", torch::nn::Sequential(linear(dim_rule + selection, selection),
                                                                           torch::nn::ReLU(), linear(selection, 1)));
  } else {
    score_linear = register_module("score_network", linear(dim_rule + selection, 1));
  }
}

at::Tensor CompositionalAttentionImpl::forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                               const functional::Masks& masks) {
  const CompositionalOptions& o = options;
  const auto [queries, keys, values] = in_proj_container(q, k, v);
  const at::Tensor heads = queries.unflatten(-1, {o.num_heads, -1});
  const torch::nn::LinearImpl& first = o.qk_rule     ? *value_k
                                       : o.nonlinear ? *score_network[0]->as<torch::nn::Linear>()
                                                     : *score_linear;
  const torch::nn::LinearImpl* second = !o.qk_rule && o.nonlinear ? score_network[2]->as<torch::nn::Linear>() : nullptr;
  const at::Tensor out = functional::compositional_attention(
      {.q = heads,
       .k = keys.unflatten(-1, {o.num_heads, -1}),
       .v = values.unflatten(-1, {*o.num_rules, -1}),
       .selection_q = o.q_compose ? value_q(heads) : value_q(q).unflatten(-1, {o.num_heads, -1}),
       .score_weight = first.weight,
       .score_bias = to_optional(first.bias),
       .score_weight2 = second ? to_optional(second->weight) : std::nullopt,
       .score_bias2 = second ? to_optional(second->bias) : std::nullopt,
       .qk_rule = o.qk_rule,
       .att_mask = masks.att_mask,
       .key_padding_mask = masks.key_padding_mask,
       .causal = o.causal || masks.causal,
       .p = dropout(),
       .scale = std::pow(static_cast<double>(o.dim_model) / static_cast<double>(o.num_heads), -0.5)});
  return out_proj(out.flatten(2));
}

}  // namespace xformers::nn
