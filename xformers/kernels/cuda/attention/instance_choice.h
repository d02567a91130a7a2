// Which built instance serves a call, and why none does.
#pragma once

#include <algorithm>
#include <vector>

#include "xformers/kernels/cuda/attention/built_instances.h"
#include "xformers/kernels/cuda/attention/kernel_list.h"
#include "xformers/kernels/cuda/base/device.h"

namespace xformers::cuda {

inline bool is_half(DType dtype) { return dtype == DType::kBFloat16 || dtype == DType::kFloat16; }

// The smallest built head_dim that holds both head dims, or null.
template <class Launch>
const Instance<Launch>* find_instance(const std::vector<Instance<Launch>>& built, const AttentionShape& shape) {
  const int64_t widest = std::max(shape.head_dim, shape.head_dim_v);
  const Instance<Launch>* best = nullptr;
  for (const auto& each : built) {
    if (each.dtype == shape.dtype && each.head_dim >= widest && (!best || each.head_dim < best->head_dim)) best = &each;
  }
  return best;
}

// The instance, or null and why there is none; `smem_bytes` of its head_dim must fit too.
template <class Launch, class SmemBytes>
const Instance<Launch>* require_instance(const std::vector<Instance<Launch>>& built, const AttentionShape& shape,
                                         bool fp32, const SmemBytes& smem_bytes, Reasons& reasons) {
  if (fp32 ? shape.dtype != DType::kFloat32 : !is_half(shape.dtype)) {
    reasons.add("dtype is ", name_of(shape.dtype), ", expected ", fp32 ? "fp32" : "bf16 or fp16");
    return nullptr;
  }
  const Instance<Launch>* instance = find_instance(built, shape);
  if (!instance) {
    int most = 0;
    for (const auto& each : built) {
      if (each.dtype == shape.dtype) most = std::max(most, each.head_dim);
    }
    reasons.add("head_dim or head_dim_v is ", std::max(shape.head_dim, shape.head_dim_v), ", expected at most ", most,
                " (what was built)");
    return nullptr;
  }
  const int bytes = smem_bytes(instance->head_dim), available = current_device().smem_per_block;
  if (bytes > available) {
    reasons.add("it needs ", bytes, " bytes of shared memory, this GPU has ", available);
  }
  return instance;
}

}  // namespace xformers::cuda
