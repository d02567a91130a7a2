#include "xformers/kernels/cuda/base/tensor_map.h"

#include <cuda_runtime_api.h>

#include <string>

#include "xformers/kernels/cuda/base/cuda_check.h"

namespace xformers::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// From the driver that is loaded: the library itself is not linked with libcuda.
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  XFORMERS_CUDA_CHECK(
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess || !function) {
    throw Error(
        "cuda: the driver has no cuTensorMapEncodeTiled, expected a driver for CUDA 12 or later.  Fix: update it");
  }
  return reinterpret_cast<Encode>(function);
}

constexpr int64_t kSize = 2;  // bytes of an element

}  // namespace

bool has_tensor_map(const BoxedTensor& tensor) {
  for (size_t i = 0; i < tensor.extents.size(); ++i) {
    if (tensor.extents[i] > int64_t{1} << 32) return false;
    if (tensor.extents[i] <= 1) continue;
    if (tensor.strides[i] <= 0 || tensor.strides[i] * kSize >= int64_t{1} << 40) return false;
  }
  return true;
}

CUtensorMap tensor_map(const BoxedTensor& tensor, int rows) {
  static const Encode encode = find_encode();
  CUtensorMap map;
  cuuint64_t extents[5] = {static_cast<cuuint64_t>(tensor.row)}, strides[4];
  for (size_t i = 0; i < 4; ++i) {
    extents[i + 1] = static_cast<cuuint64_t>(tensor.extents[i]);
    strides[i] = static_cast<cuuint64_t>(tensor.extents[i] > 1 ? tensor.strides[i] * kSize : 16);
  }
  const cuuint32_t box[5] = {64, static_cast<cuuint32_t>(rows), 1, 1, 1}, steps[5] = {1, 1, 1, 1, 1};
  const CUresult status = encode(
      &map, tensor.dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 5,
      const_cast<void*>(tensor.data), extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw Error("cuda: cuTensorMapEncodeTiled gives error " + std::to_string(status) +
                ", expected none.  Fix: this is a bug of xformers, please report it");
  }
  return map;
}

}  // namespace xformers::cuda
