#include "xformers/nn/factory/xformer.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <limits>
#include <set>

#include "xformers/nn/functional/embedding.h"
#include "xformers/nn/functional/residual.h"
#include "xformers/nn/positional/embeddings.h"
#include "xformers/nn/registry/registry.h"
#include "xformers/nn/state_dict.h"

namespace xformers::nn {
namespace {

using ops::OptionalTensor;

// build(), whose errors say where in the config it is.
template <class Build>
auto named(const std::string& path, const Build& build) {
  try {
    return build();
  } catch (const Error& error) {
    throw Error(path + ": " + error.what());
  }
}

std::shared_ptr<TensorLayer> as_layer(const std::shared_ptr<torch::nn::Module>& module) {
  auto layer = std::dynamic_pointer_cast<TensorLayer>(module);
  if (!layer)
    refuse_config(module->name(), "no TensorLayer", "a module with forward(tensor)", "derive it from TensorLayer");
  return layer;
}

// A linear layer as a TensorLayer.
class ProjectorImpl : public torch::nn::LinearImpl, public TensorLayer {
 public:
  using torch::nn::LinearImpl::LinearImpl;
  at::Tensor forward(const at::Tensor& x) override { return torch::nn::LinearImpl::forward(x); }
};

struct Embeddings {
  std::shared_ptr<torch::nn::Module> patches, pose, projector;  // null: none
  std::vector<std::shared_ptr<TensorLayer>> layers() const {
    std::vector<std::shared_ptr<TensorLayer>> result;
    for (const auto& module : {patches, pose, projector}) {
      if (module) result.push_back(as_layer(module));
    }
    return result;
  }
};

// Patches are made by the first layer of a stack, positions are added by the first of an encoder or a decoder.
Embeddings embeddings_of(const StackConfig& config, bool first, int64_t layer) {
  Embeddings result;
  if (config.patch_embedding && layer == 0) {
    result.patches = named(config.path + ".patch_embedding_config", [&] {
      return PatchEmbedding(read_options<PatchEmbeddingOptions>(*config.patch_embedding)).ptr();
    });
  }
  if (!config.position_encoding || !first) return result;
  const OptionMap& options = *config.position_encoding;
  result.pose =
      named(config.path + ".position_encoding_config", [&] { return positional_embedding_registry().build(options); });
  int64_t dim = config.dim_model;
  read_option("dim_model", options.at("dim_model"), dim);
  if (dim != config.dim_model) result.projector = std::make_shared<ProjectorImpl>(dim, config.dim_model);
  return result;
}

WrappedLayer attention_layer(const std::string& path, const HeadsConfig& heads, const functional::Masks* masks) {
  MultiHeadDispatch module = named(path, [&] { return build_multi_head_attention(heads.options, heads.attention); });
  return {module.ptr(), [module = module.ptr(), masks](const std::vector<at::Tensor>& inputs) {
            const at::Tensor& key = inputs.size() > 1 ? inputs[1] : inputs[0];
            const at::Tensor& value = inputs.size() > 2 ? inputs[2] : key;
            return module->forward(inputs[0], key, value, masks ? *masks : functional::Masks{});
          }};
}

WrappedLayer feedforward_layer(const StackConfig& config) {
  const auto module =
      named(config.path + ".feedforward_config", [&] { return feedforward_registry().build(config.feedforward); });
  return {module,
          [layer = as_layer(module)](const std::vector<at::Tensor>& inputs) { return layer->forward(inputs.at(0)); }};
}

// The residual path and the norm of the config around a layer; in reversible stacks the norm alone.
WrappedLayer wrapped(const StackConfig& config, double alpha, WrappedLayer layer) {
  NormLayer norm = build_norm(config.dim_model, config.normalization, config.use_triton);
  if (config.residual_norm_style == ResidualNormStyle::kPre) {
    WrappedLayer inner = pre_norm(std::move(norm), std::move(layer));
    return config.reversible ? inner : residual(std::move(inner));
  }
  if (config.reversible) return post_norm(std::move(norm), std::move(layer));
  const double scale = config.residual_norm_style == ResidualNormStyle::kDeepNorm ? alpha : 1;
  return post_norm(std::move(norm), residual(std::move(layer), scale));
}

at::Tensor simplices(const std::optional<OptionMap>& options, const at::Tensor& x) {
  if (!options) return x;
  int64_t chunks = 1;
  std::optional<double> temperature;
  read_option("L", options->at("L"), chunks);
  if (const auto found = options->find("temperature"); found != options->end() && !found->second.isNone()) {
    read_option("temperature", found->second, temperature);
  }
  return simplicial_embedding(x, chunks, temperature);
}

// x [batch, seqlen, dim] times a mask, in which False and -inf count as 0.
at::Tensor masked(const at::Tensor& x, const at::Tensor& mask) {
  const double hidden = -std::numeric_limits<double>::infinity();
  const at::Tensor factors = mask.is_floating_point() ? mask.masked_fill(mask == hidden, 0) : mask;
  return x * factors.to(x.scalar_type()).unsqueeze(-1);
}

}  // namespace

BlockImpl::BlockImpl(const StackConfig& config, bool first, bool last, int64_t layer, double alpha) {
  const Embeddings embeddings = embeddings_of(config, first, layer);
  embeddings_ = embeddings.layers();
  pose_encoding_ = embeddings.pose;
  for (const auto& [name, module] :
       {std::pair{"patch_emb", embeddings.patches}, std::pair{"pose_encoding", embeddings.pose},
        std::pair{"embedding_projector", embeddings.projector}}) {
    if (module) register_module(name, module);
  }
  const std::string own = config.is_decoder ? ".multi_head_config_masked" : ".multi_head_config";
  attention_ = wrapped(config, alpha, attention_layer(config.path + own, config.self_attention, &masks_));
  register_module("wrap_att", attention_.module);
  if (config.is_decoder) {
    cross_ = wrapped(config, alpha,
                     attention_layer(config.path + ".multi_head_config_cross", config.cross_attention, &cross_masks_));
    register_module("wrap_cross", cross_.module);
  }
  feedforward_ = wrapped(config, alpha, feedforward_layer(config));
  if (config.residual_norm_style == ResidualNormStyle::kPre && last) {  // behind the last layer one more norm
    feedforward_ = post_norm(build_norm(config.dim_model, config.normalization, config.use_triton), feedforward_);
  }
  register_module("wrap_ff", feedforward_.module);
  if (last) simplices_ = config.simplicial_embeddings;
}

at::Tensor BlockImpl::forward(at::Tensor x, const OptionalTensor& memory, const OptionalTensor& input_mask,
                              const functional::Masks& masks, const functional::Masks& cross_masks) {
  masks_ = masks;
  cross_masks_ = cross_masks;
  for (const auto& layer : embeddings_) x = layer->forward(x);
  const at::Tensor keys = input_mask ? masked(x, *input_mask) : x;
  x = attention_.call({x, keys, keys});
  if (cross_.call) x = cross_.call({x, *memory, *memory});
  return simplices(simplices_, feedforward_.call({x}));
}

xFormerImpl::xFormerImpl(const ModelConfig& config) {
  int64_t layers[2] = {0, 0}, encoders = 0, reversible = 0, deepnorm = 0;
  for (const StackConfig& stack : config.stacks) {
    layers[stack.is_decoder ? 1 : 0] += stack.num_layers;
    encoders += stack.is_decoder ? 0 : 1;
    reversible += stack.reversible ? 1 : 0;
    deepnorm += stack.residual_norm_style == ResidualNormStyle::kDeepNorm ? 1 : 0;
    if (stack.is_decoder && stack.reversible)
      refuse_config(stack.path + ".reversible", "true", "false", "encoders alone can be");
  }
  const auto of = [](int64_t some, size_t all) {
    return std::to_string(some) + " of " + std::to_string(all) + " stacks";
  };
  if (reversible != 0 && reversible != encoders)
    refuse_config("reversible", "that of " + of(reversible, encoders), "all or none", "change the others");
  if (deepnorm != 0 && deepnorm != static_cast<int64_t>(config.stacks.size())) {
    refuse_config("residual_norm_style 'deepnorm'", "that of " + of(deepnorm, config.stacks.size()), "all or none",
                  "change the others");
  }
  if (reversible && deepnorm)
    refuse_config("residual_norm_style", "'deepnorm' in reversible stacks", "'pre' or 'post'", "change one of both");
  if (reversible && config.tie_embedding_weights)
    refuse_config("tie_embedding_weights", "true with reversible encoders", "false", "change one of both");

  DeepNormCoefficients coefficients{1, 1, 1, 1};
  deepnorm_ = deepnorm > 0;
  if (deepnorm_) coefficients = deepnorm_coefficients(layers[0], layers[1]);
  encoder_gain_ = coefficients.encoder_beta;
  decoder_gain_ = coefficients.decoder_beta;

  std::vector<ReversibleSequenceImpl::Pair> pairs;
  bool started[2] = {false, false};
  for (const StackConfig& stack : config.stacks) {
    for (int64_t layer = 0; layer < stack.num_layers; ++layer) {
      const bool first = !std::exchange(started[stack.is_decoder ? 1 : 0], true);
      const bool last = &stack == &config.stacks.back() && layer + 1 == stack.num_layers;
      if (!stack.reversible) {
        auto& blocks = stack.is_decoder ? decoders_ : encoders_;
        blocks.emplace_back(stack, first, last, layer,
                            stack.is_decoder ? coefficients.decoder_alpha : coefficients.encoder_alpha);
        continue;
      }
      const Embeddings embeddings = embeddings_of(stack, first, layer);
      if (embeddings.patches && !first) {
        refuse_config(stack.path + ".patch_embedding_config", "given", "that of the first reversible stack alone",
                      "leave it out");
      }
      for (const auto& [name, module] :
           {std::pair{"rev_enc_patch_emb", embeddings.patches}, std::pair{"rev_enc_pose_encoding", embeddings.pose},
            std::pair{"rev_enc_embedding_projector", embeddings.projector}}) {
        if (module) register_module(name, module);
      }
      if (first) reversible_embeddings_ = embeddings.layers();
      const auto one_input = [](const WrappedLayer& inner) {
        return ReversibleLayer{inner.module,
                               [call = inner.call](const at::Tensor& x, const auto&) { return call({x}); }};
      };
      const WrappedLayer attention = wrapped(
          stack, 1, attention_layer(stack.path + ".multi_head_config", stack.self_attention, /*masks=*/nullptr));
      pairs.emplace_back(one_input(attention), one_input(wrapped(stack, 1, feedforward_layer(stack))));
      if (last) reversible_simplices_ = stack.simplicial_embeddings;
    }
  }
  if (config.tie_embedding_weights && !encoders_.empty() && !decoders_.empty() && decoders_[0]->pose_encoding_) {
    BlockImpl& block = *encoders_[0];
    if (block.pose_encoding_) {
      std::replace(block.embeddings_.begin(), block.embeddings_.end(), as_layer(block.pose_encoding_),
                   as_layer(decoders_[0]->pose_encoding_));
      block.replace_module("pose_encoding", decoders_[0]->pose_encoding_);
      block.pose_encoding_ = decoders_[0]->pose_encoding_;
    }
  }
  if (!pairs.empty()) {
    reversible_ = register_module("encoders", ReversibleSequence(std::move(pairs)));
  } else {
    torch::nn::ModuleList list;
    for (const Block& block : encoders_) list->push_back(block.ptr());
    register_module("encoders", list);
  }
  torch::nn::ModuleList list;
  for (const Block& block : decoders_) list->push_back(block.ptr());
  register_module("decoders", list);
  init_weights(config.weight_init);
}

at::Tensor xFormerImpl::reversed(const at::Tensor& src, const OptionalTensor& input_mask) {
  at::Tensor x = src;
  for (const auto& layer : reversible_embeddings_) x = layer->forward(x);
  x = at::cat({x, x}, -1);
  if (input_mask && input_mask->scalar_type() == at::kBool) {
    x = masked(x, *input_mask);
  } else if (input_mask) {  // numbers are added to their token; -inf leaves zeros of it
    const at::Tensor hidden = *input_mask == -std::numeric_limits<double>::infinity();
    x = masked(x, hidden.logical_not()) + input_mask->masked_fill(hidden, 0).unsqueeze(-1).to(x.scalar_type());
  }
  return simplices(reversible_simplices_, at::stack(reversible_->forward(x).chunk(2, -1)).mean(0));
}

at::Tensor xFormerImpl::forward(const at::Tensor& src, const OptionalTensor& tgt,
                                const OptionalTensor& encoder_input_mask, const OptionalTensor& decoder_input_mask) {
  OptionalTensor memory;
  if (!reversible_.is_empty()) {
    memory = reversed(src, encoder_input_mask);
  } else {
    for (Block& encoder : encoders_) memory = encoder->forward(memory.value_or(src), std::nullopt, encoder_input_mask);
  }
  if (!memory) {
    refuse_config("stack_configs", decoders_.empty() ? "empty" : "decoders without an encoder", "at least one encoder",
                  "add a stack with block_type 'encoder'");
  }
  if (decoders_.empty()) return *memory;
  at::Tensor target = tgt.value_or(src);
  for (Block& decoder : decoders_) target = decoder->forward(target, memory, decoder_input_mask);
  return target;
}

namespace {

// The walk of Python's weight_init: each module once; one that initialises itself is not looked into.
void init_module(torch::nn::Module& module, const std::string& name, WeightInit scheme, double gain, bool deepnorm,
                 std::set<torch::nn::Module*>& seen) {
  if (!seen.insert(&module).second) return;
  if (auto* layer = dynamic_cast<TensorLayer*>(&module); layer && layer->init_weights(gain)) return;
  const auto row = [&](const char* kind, const at::Tensor& weight, const at::Tensor& bias) {
    init_weights_({{kind, name, weight, bias}}, scheme, gain, deepnorm);
  };
  if (auto* linear = module.as<torch::nn::LinearImpl>()) return row("linear", linear->weight, linear->bias);
  if (auto* conv = module.as<torch::nn::Conv2dImpl>()) return row("conv2d", conv->weight, conv->bias);
  for (const auto& child : module.named_children()) {
    init_module(*child.value(), name + "." + child.key(), scheme, gain, deepnorm, seen);
  }
}

}  // namespace

void xFormerImpl::init_weights(WeightInit scheme) {
  for (const auto& child : named_children()) {
    std::set<torch::nn::Module*> seen;
    init_module(*child.value(), child.key(), scheme, child.key() == "decoders" ? decoder_gain_ : encoder_gain_,
                deepnorm_, seen);
  }
}

namespace {

// A model of C++ from a JSON text, in evaluation: for callers that hold the weights elsewhere, by name.
at::Tensor xformer_forward(std::string_view json, const c10::List<std::string>& names, at::TensorList values,
                           const at::Tensor& src, const OptionalTensor& tgt, const OptionalTensor& encoder_input_mask,
                           const OptionalTensor& decoder_input_mask) {
  const at::NoGradGuard no_grad;
  xFormer model = xFormer::from_json(std::string(json));
  StateDict state;
  for (size_t i = 0; i < values.size(); ++i) state[names.get(i)] = values[i];
  if (!values.empty()) model->to(values[0].device(), values[0].scalar_type());
  load_state_dict(*model, state);
  model->eval();
  return model->forward(src, tgt, encoder_input_mask, decoder_input_mask);
}

// The parameters that such a model begins with after a seed.
std::tuple<std::vector<std::string>, std::vector<at::Tensor>> xformer_weights(std::string_view json, int64_t seed) {
  const ModelConfig config = ModelConfig::from_json(std::string(json));
  xFormer model(config);
  at::manual_seed(static_cast<uint64_t>(seed));
  model->init_weights(config.weight_init);
  std::vector<std::string> names;
  std::vector<at::Tensor> values;
  for (const auto& [name, value] : state_dict(*model)) {
    names.push_back(name);
    values.push_back(value.detach());
  }
  return {names, values};
}

}  // namespace
}  // namespace xformers::nn

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def(
      "xformer_forward(str json, str[] names, Tensor[] values, Tensor src, Tensor? tgt=None, "
      "Tensor? encoder_input_mask=None, Tensor? decoder_input_mask=None) -> Tensor",
      xformers::nn::xformer_forward);
  m.def("xformer_weights(str json, int seed) -> (str[] names, Tensor[] values)", xformers::nn::xformer_weights);
  m.def("xformer_components() -> str", xformers::nn::components_json);
}
