#include <ATen/ops/empty.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "examples/common/error.h"
#include "examples/llama/load.h"
#include "examples/llama/safetensors.h"

namespace llama {
namespace {

using examples::Error;
namespace fs = std::filesystem;

// config.json, whose values are asked for by name and kind.
class ConfigFile {
 public:
  explicit ConfigFile(std::string path) : path_(std::move(path)) {
    std::ifstream in(path_);
    if (!in) throw Error(fmt::format("cannot open {}: {}", path_, std::strerror(errno)));
    json_ = nlohmann::json::parse(in, nullptr, false);
    if (!json_.is_object()) throw Error(path_ + " is no JSON object");
  }

  bool has(const char* key) const { return json_.contains(key) && !json_.at(key).is_null(); }
  const nlohmann::json& at(const char* key) const { return json_.at(key); }

  int64_t size(const char* key) const {
    if (!has(key)) throw Error(fmt::format("{} has no '{}', expected a number", path_, key));
    return size_or(key, 0);
  }
  int64_t size_or(const char* key, int64_t absent) const {
    if (!has(key)) return absent;
    const auto& value = json_.at(key);
    constexpr int64_t kMost = int64_t{1} << 40;
    if (!value.is_number_integer() || value.get<int64_t>() < 1 || value.get<int64_t>() > kMost) {
      throw Error(fmt::format("{}: '{}' is {}, expected a whole number from 1 on", path_, key, value.dump()));
    }
    return value.get<int64_t>();
  }
  double number_or(const char* key, double absent) const { return has(key) ? number(json_.at(key), key) : absent; }
  double number(const nlohmann::json& value, const std::string& key) const {
    if (!value.is_number() || !(value.get<double>() > 0)) {
      throw Error(fmt::format("{}: '{}' is {}, expected a number above 0", path_, key, value.dump()));
    }
    return value.get<double>();
  }
  [[noreturn]] void fail(const std::string& key, const std::string& came, const std::string& expected) const {
    throw Error(fmt::format("{}: '{}' is {}, expected {}", path_, key, came, expected));
  }

 private:
  std::string path_;
  nlohmann::json json_;
};

xformers::ops::RotaryScaling rope_scaling(const ConfigFile& file, const nlohmann::json& json) {
  xformers::ops::RotaryScaling scaling;
  const std::string kind = json.value("rope_type", json.value("type", std::string("default")));
  if (kind == "default") return scaling;
  if (kind != "linear" && kind != "llama3") file.fail("rope_scaling", "'" + kind + "'", "'linear' or 'llama3'");
  const auto number = [&](const char* key) {
    if (!json.contains(key)) file.fail(std::string("rope_scaling.") + key, "not there", "a number");
    return file.number(json.at(key), std::string("rope_scaling.") + key);
  };
  scaling.kind = kind;
  scaling.factor = number("factor");
  if (kind == "llama3") {
    scaling.original_seq_len = number("original_max_position_embeddings");
    scaling.low_freq_factor = number("low_freq_factor");
    scaling.high_freq_factor = number("high_freq_factor");
  }
  return scaling;
}

Config read_config(const ConfigFile& file) {
  Config c;
  c.layers = file.size("num_hidden_layers");
  c.dim = file.size("hidden_size");
  c.heads = file.size("num_attention_heads");
  c.kv_heads = file.size_or("num_key_value_heads", c.heads);
  c.head_dim = file.size_or("head_dim", c.dim / c.heads);
  c.hidden = file.size("intermediate_size");
  c.vocabulary = file.size("vocab_size");
  c.context = file.size_or("max_position_embeddings", 2048);
  c.norm_eps = file.number_or("rms_norm_eps", 1e-6);
  c.rope_theta = file.number_or("rope_theta", 10000);
  // Newer files keep what belongs to positions in one object.
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!file.has(key) || !file.at(key).is_object()) continue;
    const nlohmann::json& rope = file.at(key);
    if (rope.contains("rope_theta")) c.rope_theta = file.number(rope.at("rope_theta"), "rope_theta");
    c.rope_scaling = rope_scaling(file, rope);
  }
  c.bytes = c.vocabulary == 256;
  if (c.heads % c.kv_heads != 0) {
    file.fail("num_key_value_heads", std::to_string(c.kv_heads), fmt::format("a divisor of {} heads", c.heads));
  }
  if (c.head_dim < 2 || c.head_dim % 2 != 0) file.fail("head_dim", std::to_string(c.head_dim), "an even number");
  if (file.has("hidden_act") && file.at("hidden_act") != "silu") {
    file.fail("hidden_act", file.at("hidden_act").dump(), "\"silu\"");
  }
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    if (file.has(key) && file.at(key) != false) file.fail(key, file.at(key).dump(), "false: matrices without biases");
  }
  if (file.has("eos_token_id")) {
    const nlohmann::json& end = file.at("eos_token_id");
    for (const nlohmann::json& token : end.is_array() ? end : nlohmann::json::array({end})) {
      if (!token.is_number_integer()) file.fail("eos_token_id", end.dump(), "a token or a list of tokens");
      c.end_tokens.push_back(token.get<int64_t>());
    }
  }
  return c;
}

// All files' tensors by name, checked when they are taken.
class Tensors {
 public:
  explicit Tensors(const std::string& folder) : folder_(folder) {
    std::vector<fs::path> files;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
      if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
    }
    if (files.empty()) throw Error(fmt::format("{} has no *.safetensors", folder));
    std::sort(files.begin(), files.end());
    for (const fs::path& file : files) {
      for (auto& [name, tensor] : read_safetensors(file)) {
        if (!tensors_.emplace(name, std::move(tensor)).second) {
          throw Error(fmt::format("tensor '{}' is in two files of {}", name, folder));
        }
      }
    }
  }

  bool has(const std::string& name) const { return tensors_.contains(name); }
  const at::Tensor& get(const std::string& name, at::IntArrayRef shape) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
      throw Error(fmt::format("{} has no tensor '{}', expected [{}]", folder_, name, fmt::join(shape, ", ")));
    }
    const at::Tensor& tensor = found->second;
    if (tensor.sizes() != shape || !tensor.is_floating_point()) {
      throw Error(fmt::format("{}: tensor '{}' is {} [{}], expected floating-point numbers [{}]", folder_, name,
                              c10::toString(tensor.scalar_type()), fmt::join(tensor.sizes(), ", "),
                              fmt::join(shape, ", ")));
    }
    return tensor;
  }

 private:
  std::string folder_;
  std::map<std::string, at::Tensor> tensors_;
};

// Where the tensors of a model lie in the files: views, nothing is read yet.
struct Sources {
  struct OfLayer {
    at::Tensor attention_norm, q, k, v, out, feed_forward_norm, gate, up, down;
  };
  at::Tensor embedding, norm, head;
  std::vector<OfLayer> layers;
};

Sources find(const Tensors& tensors, const Config& c) {
  Sources s;
  s.embedding = tensors.get("model.embed_tokens.weight", {c.vocabulary, c.dim});
  s.norm = tensors.get("model.norm.weight", {c.dim});
  // Without one of its own the head is the embedding.
  s.head = tensors.has("lm_head.weight") ? tensors.get("lm_head.weight", {c.vocabulary, c.dim}) : s.embedding;
  const int64_t q_rows = c.heads * c.head_dim, kv_rows = c.kv_heads * c.head_dim;
  for (int64_t i = 0; i < c.layers; ++i) {
    const auto get = [&](const char* name, at::IntArrayRef shape) {
      return tensors.get(fmt::format("model.layers.{}.{}.weight", i, name), shape);
    };
    s.layers.push_back({.attention_norm = get("input_layernorm", {c.dim}),
                        .q = get("self_attn.q_proj", {q_rows, c.dim}),
                        .k = get("self_attn.k_proj", {kv_rows, c.dim}),
                        .v = get("self_attn.v_proj", {kv_rows, c.dim}),
                        .out = get("self_attn.o_proj", {c.dim, q_rows}),
                        .feed_forward_norm = get("post_attention_layernorm", {c.dim}),
                        .gate = get("mlp.gate_proj", {c.hidden, c.dim}),
                        .up = get("mlp.up_proj", {c.hidden, c.dim}),
                        .down = get("mlp.down_proj", {c.dim, c.hidden})});
  }
  return s;
}

}  // namespace

Model load_llama_folder(const std::string& path, at::ScalarType dtype, at::Device device) {
  Model model;
  model.config = read_config(ConfigFile(path + "/config.json"));
  const Config& c = model.config;
  const Sources sources = find(Tensors(path), c);
  const auto options = at::TensorOptions(dtype).device(device);
  // Parts one under the other, each written once where it belongs.
  const auto stack = [&](const std::vector<at::Tensor>& parts, at::IntArrayRef shape) {
    at::Tensor whole = at::empty(shape, options);
    const at::Tensor rows = whole.view({-1, shape.back()});
    int64_t row = 0;
    for (const at::Tensor& part : parts) {
      rows.narrow(0, row, part.size(0)).copy_(part);
      row += part.size(0);
    }
    return whole;
  };
  const auto own = [&](const at::Tensor& t) { return at::empty(t.sizes(), options).copy_(t); };

  model.embedding = own(sources.embedding);
  model.norm.weight = own(sources.norm);
  model.head = sources.head.is_same(sources.embedding) ? model.embedding : own(sources.head);
  for (const Sources::OfLayer& from : sources.layers) {
    model.layers.push_back({.attention_norm = {.weight = own(from.attention_norm)},
                            .feed_forward_norm = {.weight = own(from.feed_forward_norm)},
                            .qkv = stack({from.q, from.k, from.v}, {(c.heads + 2 * c.kv_heads) * c.head_dim, c.dim}),
                            .out = own(from.out),
                            .up = stack({from.gate, from.up}, {2, c.hidden, c.dim}),
                            .down = own(from.down)});
  }
  return model;
}

}  // namespace llama
