#include "xformers/nn/factory/config.h"

#include <nlohmann/json.hpp>

#include "xformers/kernels/base/check.h"
#include "xformers/kernels/base/nearest_name.h"
#include "xformers/nn/registry/registry.h"

namespace xformers::nn {
namespace {

using Json = nlohmann::json;

c10::IValue to_value(const std::string& path, const Json& json) {
  if (json.is_null()) return {};
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_integer()) return json.get<int64_t>();
  if (json.is_number()) return json.get<double>();
  if (json.is_string()) return json.get<std::string>();
  if (json.is_array() && std::all_of(json.begin(), json.end(), [](const Json& j) { return j.is_number_integer(); })) {
    return json.get<std::vector<int64_t>>();
  }
  refuse_config(path, json.dump(), "a number, a text, true, false, null or a list of whole numbers", "write it so");
}

const Json& object(const std::string& path, const Json& json) {
  if (!json.is_object()) refuse_config(path, json.dump(), "an object", "write its options by name");
  return json;
}

OptionMap to_options(const std::string& path, const Json& json) {
  OptionMap options;
  for (const auto& [key, value] : object(path, json).items()) options[key] = to_value(path + "." + key, value);
  return options;
}

void refuse_unknown(const std::string& path, const Json& json, const std::vector<std::string_view>& known) {
  std::string all;
  for (std::string_view name : known) all += (all.empty() ? "" : ", ") + std::string(name);
  for (const auto& [key, _] : json.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    refuse_config((path.empty() ? "" : path + ".") + key, "given", "one of " + all,
                  "did you mean '" + std::string(nearest_name(key, known)) + "'?");
  }
}

const Json& required(const std::string& path, const Json& json, const char* key) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) refuse_config(path + "." + key, "missing", "given", "add it");
  return *found;
}

template <class T>
void read(const std::string& path, const Json& json, const char* key, T& result) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return;
  read_option((path + "." + key).c_str(), to_value(path + "." + key, *found), result);
}

HeadsConfig to_heads(const std::string& path, const Json& json, int64_t dim_model) {
  HeadsConfig heads;
  MultiHeadDispatchOptions& o = heads.options;
  o.dim_model = dim_model;
  object(path, json);
  read(path, json, "dim_model", o.dim_model);
  read(path, json, "num_heads", o.num_heads);
  read(path, json, "residual_dropout", o.residual_dropout);
  read(path, json, "use_separate_proj_weight", o.use_separate_proj_weight);
  read(path, json, "use_rotary_embeddings", o.use_rotary_embeddings);
  if (const auto bias = json.find("bias"); bias != json.end() && !bias->is_null()) {
    for (size_t i = 0; i < o.bias.size(); ++i) {
      const Json& one = bias->is_array() && bias->size() == o.bias.size() ? (*bias)[i] : *bias;
      read_option((path + ".bias").c_str(), to_value(path + ".bias", one), o.bias[i]);
    }
  }
  heads.attention = to_options(path + ".attention", required(path, json, "attention"));
  return heads;
}

std::optional<OptionMap> to_part(const std::string& path, const Json& json, const char* key, const char* filled,
                                 int64_t dim_model) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return std::nullopt;
  OptionMap options = to_options(path + "." + key, *found);
  if (filled) options.emplace(filled, dim_model);
  return options;
}

StackConfig to_stack(const std::string& path, const Json& json) {
  object(path, json);
  const Json& type = required(path, json, "block_type");
  StackConfig stack;
  stack.path = path;
  stack.is_decoder = type == "decoder";
  if (!stack.is_decoder && type != "encoder") {
    refuse_config(path + ".block_type", type.dump(), "\"encoder\" or \"decoder\"", "choose one of them");
  }
  std::vector<std::string_view> known = {"block_type",
                                         "dim_model",
                                         "num_layers",
                                         "residual_norm_style",
                                         "layer_norm_style",
                                         "normalization",
                                         "use_triton",
                                         "reversible",
                                         "feedforward_config",
                                         "position_encoding_config",
                                         "patch_embedding_config",
                                         "simplicial_embeddings"};
  if (stack.is_decoder) {
    known.insert(known.end(), {"multi_head_config_masked", "multi_head_config_cross"});
  } else {
    known.emplace_back("multi_head_config");
  }
  refuse_unknown(path, json, known);
  required(path, json, "dim_model");
  read(path, json, "dim_model", stack.dim_model);
  read(path, json, "num_layers", stack.num_layers);
  read(path, json, "normalization", stack.normalization);
  read(path, json, "use_triton", stack.use_triton);
  read(path, json, "reversible", stack.reversible);
  std::string style = "post";
  read(path, json, "layer_norm_style", style);  // its name in earlier versions
  read(path, json, "residual_norm_style", style);
  stack.residual_norm_style = to_residual_norm_style(style);
  const auto heads = [&](const char* key) {
    return to_heads(path + "." + key, required(path, json, key), stack.dim_model);
  };
  stack.self_attention = heads(stack.is_decoder ? "multi_head_config_masked" : "multi_head_config");
  if (stack.is_decoder) stack.cross_attention = heads("multi_head_config_cross");
  stack.feedforward = to_options(path + ".feedforward_config", required(path, json, "feedforward_config"));
  stack.feedforward.emplace("dim_model", stack.dim_model);
  stack.position_encoding = to_part(path, json, "position_encoding_config", "dim_model", stack.dim_model);
  stack.patch_embedding = to_part(path, json, "patch_embedding_config", "out_channels", stack.dim_model);
  stack.simplicial_embeddings = to_part(path, json, "simplicial_embeddings", nullptr, 0);
  return stack;
}

}  // namespace

void refuse_config(const std::string& path, const std::string& got, const std::string& expected,
                   const std::string& fix) {
  fail({"xFormer", path, got, expected, fix});
}

ModelConfig ModelConfig::from_json(const std::string& text) {
  Json json;
  try {
    json = Json::parse(text);
  } catch (const Json::parse_error& error) {
    refuse_config("the text", std::string("no JSON (") + error.what() + ")", "an object with stack_configs",
                  "write it with a JSON library");
  }
  object("the config", json);
  refuse_unknown("", json, {"stack_configs", "tie_embedding_weights", "weight_init"});
  ModelConfig config;
  const auto stacks = json.find("stack_configs");
  if (stacks == json.end()) refuse_config("stack_configs", "missing", "given", "add it");
  if (stacks->is_object() && stacks->contains("block_type")) {
    config.stacks.push_back(to_stack("stack_configs[0]", *stacks));
  } else if (stacks->is_object()) {
    for (const auto& [key, stack] : stacks->items()) {
      config.stacks.push_back(to_stack("stack_configs['" + key + "']", stack));
    }
  } else if (stacks->is_array()) {
    for (size_t i = 0; i < stacks->size(); ++i) {
      config.stacks.push_back(to_stack("stack_configs[" + std::to_string(i) + "]", (*stacks)[i]));
    }
  } else {
    refuse_config("stack_configs", stacks->dump(), "a list, or an object", "write the stacks in a list");
  }
  read("xFormer", json, "tie_embedding_weights", config.tie_embedding_weights);
  std::string scheme = "vit";
  read("xFormer", json, "weight_init", scheme);
  config.weight_init = to_weight_init(scheme);
  return config;
}

std::string components_json() {
  Json json;
  for (const auto& [kind, registry] :
       {std::pair{"attention", &attention_registry()}, std::pair{"feedforward", &feedforward_registry()},
        std::pair{"positional_embedding", &positional_embedding_registry()}}) {
    for (const std::string& name : registry->names()) json[kind][name] = registry->options(name);
  }
  return json.dump();
}

}  // namespace xformers::nn
