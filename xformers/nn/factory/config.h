// What a model is made of, as plain data: the keys of Python's configs (xformers.factory), read from JSON.
#pragma once

#include <string>
#include <vector>

#include "xformers/kernels/base/error.h"
#include "xformers/nn/attention/multi_head_dispatch.h"
#include "xformers/nn/functional/initialization.h"
#include "xformers/nn/registry/option_map.h"
#include "xformers/nn/residual/residual.h"

namespace xformers::nn {

// "xFormer: <path> is <got>, expected <expected>.  Fix: <fix>."
[[noreturn]] void refuse_config(const std::string& path, const std::string& got, const std::string& expected,
                                const std::string& fix);

struct HeadsConfig {
  MultiHeadDispatchOptions options;
  OptionMap attention;
};

// A stack of equal layers.
struct StackConfig {
  bool is_decoder = false;
  int64_t dim_model = 0, num_layers = 1;
  ResidualNormStyle residual_norm_style = ResidualNormStyle::kPost;
  std::string normalization = "layernorm";
  bool use_triton = true;  // FusedLayerNorm, else torch::nn::LayerNorm
  bool reversible = false;
  HeadsConfig self_attention, cross_attention;  // the second of decoders
  OptionMap feedforward;
  std::optional<OptionMap> position_encoding, patch_embedding, simplicial_embeddings;
  std::string path;  // of errors: "stack_configs[1]"
};

struct ModelConfig {
  std::vector<StackConfig> stacks;
  bool tie_embedding_weights = false;
  WeightInit weight_init = WeightInit::kViT;

  // {"stack_configs": [...] or {...}, "tie_embedding_weights": false, "weight_init": "vit"}. xformers::Error for a text
  // that is no JSON and for keys that are missing or unknown, with their path and the nearest name.
  static ModelConfig from_json(const std::string& text);
};

// {"feedforward": {"MLP": ["dim_model", ...], ...}, "attention": ..., "positional_embedding": ...}: what configs can
// name, and the options of each.
std::string components_json();

}  // namespace xformers::nn
