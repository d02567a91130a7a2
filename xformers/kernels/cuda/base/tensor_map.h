// Descriptions of tensors for the copy engine (arch/tma.cuh). Plain C++.
#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>

#include "xformers/kernels/base/dtype.h"

namespace xformers::cuda {

// Up to four dimensions behind the contiguous one; strides in elements. A dimension of extent 1 has any stride.
struct BoxedTensor {
  const void* data = nullptr;
  DType dtype = DType::kBFloat16;  // of 16 bits
  int64_t row = 0;                 // elements of the contiguous dimension
  std::array<int64_t, 4> extents{}, strides{};
};

// Boxes of 64 elements x `rows` of the first two dimensions, with the 128-byte swizzle. The tensor begins and its rows
// begin at units of 16 bytes. Throws xformers::Error where the driver refuses.
CUtensorMap tensor_map(const BoxedTensor& tensor, int rows);

// Whether the copy engine can address it: extents up to 2^32, strides above 0 and below 2^40 bytes.
bool has_tensor_map(const BoxedTensor& tensor);

}  // namespace xformers::cuda
