// Models from disk.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <string>

#include "examples/llama/model.h"

namespace llama {

// A folder with config.json and the weights, *.safetensors, as public LLaMA models have them; or a checkpoint of
// microgpt. Everything is checked before anything is allocated for it: examples::Error says which tensor or key, what
// came and what was expected.
Model load_model(const std::string& path, at::ScalarType dtype, at::Device device);

Model load_llama_folder(const std::string& path, at::ScalarType dtype, at::Device device);
Model load_microgpt(const std::string& path, at::ScalarType dtype, at::Device device);

}  // namespace llama
