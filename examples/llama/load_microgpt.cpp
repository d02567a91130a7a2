#include <torch/nn/module.h>

#include "examples/llama/load.h"
#include "examples/microgpt/checkpoint.h"

namespace llama {

Model load_microgpt(const std::string& path, at::ScalarType dtype, at::Device device) {
  microgpt::ComputeOptions compute;
  compute.device = "cpu";
  const auto gpt = microgpt::load_model(path, compute);
  const microgpt::ModelOptions& sizes = gpt->options();
  Model model;
  model.config = {.layers = sizes.layers,
                  .dim = sizes.dim,
                  .heads = sizes.heads,
                  .kv_heads = sizes.heads,
                  .head_dim = sizes.dim / sizes.heads,
                  .hidden = 4 * sizes.dim,
                  .vocabulary = microgpt::kVocabulary,
                  .context = sizes.context,
                  .norm_eps = 1e-5,
                  .rope_adjacents = true,
                  .gated = false,
                  .bytes = true};
  const auto parameters = gpt->named_parameters();
  const auto get = [&](const std::string& name) { return parameters[name].detach().to(device, dtype); };
  const auto norm = [&](const std::string& name) { return Norm{get(name + ".weight"), get(name + ".bias")}; };
  model.embedding = get("embedding.weight");
  model.norm = norm("norm");
  model.head = get("head.weight");
  for (int64_t i = 0; i < sizes.layers; ++i) {
    const std::string block = "block" + std::to_string(i) + ".";
    model.layers.push_back({.attention_norm = norm(block + "attention_norm"),
                            .feed_forward_norm = norm(block + "feed_forward_norm"),
                            .qkv = get(block + "qkv.weight"),
                            .out = get(block + "attention_out.weight"),
                            .up = get(block + "up.weight"),
                            .down = get(block + "down.weight")});
  }
  return model;
}

}  // namespace llama
