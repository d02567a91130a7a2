#include "examples/llama/load.h"

#include <filesystem>

namespace llama {

Model load_model(const std::string& path, at::ScalarType dtype, at::Device device) {
  return std::filesystem::is_directory(path) ? load_llama_folder(path, dtype, device)
                                             : load_microgpt(path, dtype, device);
}

int64_t num_parameters(const Model& model) {
  int64_t count = model.embedding.numel() + model.norm.weight.numel();
  if (!model.head.is_same(model.embedding)) count += model.head.numel();
  const auto add = [&](const at::Tensor& t) { count += t.defined() ? t.numel() : 0; };
  add(model.norm.bias);
  for (const Layer& layer : model.layers) {
    for (const Norm* norm : {&layer.attention_norm, &layer.feed_forward_norm}) {
      add(norm->weight);
      add(norm->bias);
    }
    for (const at::Tensor* matrix : {&layer.qkv, &layer.out, &layer.up, &layer.down}) add(*matrix);
  }
  return count;
}

}  // namespace llama
