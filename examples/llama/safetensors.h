// Files of named tensors: 8 bytes with the length of a JSON header (little endian), the header, then the tensors'
// bytes.
//   {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__": {...}}
// Offsets count from the end of the header. https://huggingface.co/docs/safetensors
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

namespace llama {

// The tensors of `path`, where the file lies in memory: nothing is read before it is used. examples::Error, which names
// the tensor, where the header or one of its entries does not fit the file.
std::map<std::string, at::Tensor> read_safetensors(const std::string& path);

}  // namespace llama
