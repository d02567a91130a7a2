// Calls for the tests of contracts: shapes, and tensors that claim to be on a GPU.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <string>

#include "xformers/ops/attention/contracts/reasons.h"

namespace xformers::ops {

struct Call {
  at::Tensor query, key, value;
  AttentionRequest request() const { return {.query = query, .key = key, .value = value}; }
};

inline Call call_of(at::ScalarType dtype, int64_t seqlen_q = 16, int64_t seqlen_k = 16, int64_t head_dim = 64) {
  const at::Tensor key = at::zeros({1, seqlen_k, 2, head_dim}, dtype);
  return {at::zeros({1, seqlen_q, 2, head_dim}, dtype), key, key};
}

// A tensor that says it is on the first GPU; it has no memory. Contracts read no element.
inline at::Tensor claimed_on_cuda(const at::Tensor& like) {
  const at::Device device(at::kCUDA, 0);
  c10::Storage storage(c10::Storage::use_byte_size_t(), 0, c10::DataPtr(nullptr, device));
  at::Tensor tensor = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CUDA), like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides());
  return tensor;
}

inline Call claimed_on_cuda(const Call& call) {
  return {claimed_on_cuda(call.query), claimed_on_cuda(call.key), claimed_on_cuda(call.value)};
}

// What a build without CUDA kernels adds is left out, so that tests read the same for every build.
inline Reasons reasons_of(const char* key, const AttentionRequest& request) {
  Reasons reasons = not_supported_reasons(find_contract(key), request);
  std::erase_if(reasons, [](const std::string& reason) {
    return reason.find("this library was built without CUDA kernels") != std::string::npos;
  });
  return reasons;
}

}  // namespace xformers::ops
