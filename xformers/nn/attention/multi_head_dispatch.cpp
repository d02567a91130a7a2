#include "xformers/nn/attention/multi_head_dispatch.h"

#include <ATen/ops/dropout.h>
#include <torch/nn/init.h>

#include <utility>

#include "xformers/nn/registry/registry.h"

namespace xformers::nn {
namespace {

const ops::Check& mhd_check() {
  static const ops::Check check("MultiHeadDispatch");
  return check;
}

}  // namespace

MultiHeadDispatchImpl::MultiHeadDispatchImpl(const MultiHeadDispatchOptions& options_arg,
                                             std::shared_ptr<torch::nn::Module> attention_arg)
    : options(options_arg), attention(std::move(attention_arg)) {
  if (dynamic_cast<Attention*>(attention.get()) == nullptr) {
    mhd_check().fail("attention", attention ? attention->name() : "null", "a module that is an xformers::nn::Attention",
                     "build it with attention_registry()");
  }
  const int64_t dim_value = options.dim_value.value_or(options.dim_model);
  for (const auto& [name, width] :
       {std::pair{"dim_model", options.dim_model}, std::pair{"dim_key", options.dim_key.value_or(options.dim_model)},
        std::pair{"dim_value", dim_value}}) {
    if (options.num_heads >= 1 && width % options.num_heads == 0) continue;
    mhd_check().fail(name, std::to_string(width), "a multiple of num_heads = " + std::to_string(options.num_heads),
                     "choose another width or number of heads");
  }
  const bool own_out = options.out_proj.is_empty() && !as_attention().flags.requires_skip_multi_head;
  if (own_out && dim_value != options.dim_model) {
    mhd_check().fail("dim_value", std::to_string(dim_value), "dim_model = " + std::to_string(options.dim_model),
                     "pass an out_proj from as many features");
  }
  MultiHeadDispatchImpl::reset();
}

Attention& MultiHeadDispatchImpl::as_attention() const { return dynamic_cast<Attention&>(*attention); }

void MultiHeadDispatchImpl::reset() {
  if (std::exchange(is_made_, true)) {  // called by clone(): a copy has parts of its own
    attention = attention->clone();
    if (!options.out_proj.is_empty()) {
      options.out_proj = torch::nn::Linear(std::dynamic_pointer_cast<torch::nn::LinearImpl>(options.out_proj->clone()));
    }
  }
  register_module("attention", attention);
  const AttentionFlags& flags = as_attention().flags;
  if (flags.requires_skip_multi_head) return;
  const auto& [q, k, v, out] = options.bias;
  const int64_t dim_key = options.dim_key.value_or(options.dim_model);
  if (flags.requires_input_projection) {
    in_proj_container = register_module(
        "in_proj_container", InputProjection(InputProjectionOptions{options.dim_model,
                                                                    dim_key,
                                                                    options.dim_value.value_or(options.dim_model),
                                                                    {q, k, v},
                                                                    options.use_separate_proj_weight}));
  }
  if (options.use_rotary_embeddings) {
    rotary_embeddings = register_module("rotary_embeddings", RotaryEmbedding(dim_key / options.num_heads));
  }
  if (!options.out_proj.is_empty()) {
    proj = register_module("proj", options.out_proj);
    return;
  }
  proj = register_module("proj",
                         torch::nn::Linear(torch::nn::LinearOptions(options.dim_model, options.dim_model).bias(out)));
  if (out) torch::nn::init::zeros_(proj->bias);
}

at::Tensor MultiHeadDispatchImpl::forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                          const functional::Masks& masks) {
  const ops::Check& check = mhd_check();
  Attention& inner = as_attention();
  const AttentionFlags& flags = inner.flags;
  for (const auto& [name, x] : {std::pair{"query", &query}, std::pair{"key", &key}, std::pair{"value", &value}}) {
    check.dims(name, *x, 3, "[batch, seqlen, dim_model]");
    check.equal(name, x->sym_size(2), options.dim_model, "build the module for this width");
  }
  if (flags.requires_same_k_q_dimensions) {
    check.equal("key.seqlen", key.sym_size(1), query.sym_size(1), "the attention takes as many keys as queries");
  }
  const bool takes_padding = flags.supports_key_padding_mask || flags.supports_attention_mask;
  if ((masks.att_mask && !flags.supports_attention_mask) || (masks.key_padding_mask && !takes_padding)) {
    check.fail("masks", "given", "none beside this attention, which takes none", "leave them out");
  }
  if (flags.requires_skip_multi_head) return inner.forward(query, key, value, masks);
  std::array<at::Tensor, 3> qkv{query, key, value};
  if (in_proj_container) qkv = in_proj_container(query, key, value);
  for (at::Tensor& x : qkv) x = x.unflatten(-1, {options.num_heads, -1});
  auto& [q, k, v] = qkv;
  if (rotary_embeddings) {
    std::tie(q, k) = rotary_embeddings(q.transpose(1, 2), k.transpose(1, 2));
    q = q.transpose(1, 2);
    k = k.transpose(1, 2);
  }
  // FourierMix, the only one without projections, mixes each head by itself, as with heads folded into the batch.
  const bool folds = !flags.requires_input_projection;
  if (folds) {
    for (at::Tensor& x : qkv) x = x.transpose(1, 2);
  }
  const at::Tensor out = inner.forward(q, k, v, masks);
  const at::Tensor merged = (folds ? out.transpose(1, 2) : out).flatten(2);
  return functional::drop(proj(merged), is_training() ? options.residual_dropout : 0);
}

MultiHeadDispatch build_multi_head_attention(const MultiHeadDispatchOptions& options, OptionMap attention) {
  const int64_t dim_head = options.dim_model / std::max<int64_t>(options.num_heads, 1);
  const auto name = attention.find("name");
  const bool favor = name != attention.end() && name->second.isString() && name->second.toStringRef() == "favor";
  attention.emplace("num_heads", options.num_heads);
  attention.emplace("dim_model", options.dim_model);
  attention.emplace("dim_head", dim_head);
  if (!favor) attention.emplace("dim_features", dim_head);  // favor's own default is larger
  return MultiHeadDispatch(options, attention_registry().build(attention));
}

}  // namespace xformers::nn
