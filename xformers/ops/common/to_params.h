// From tensors to what kernels take. Checks happen before.
#pragma once

#include <ATen/core/Tensor.h>

#include "xformers/kernels/base/dtype.h"
#include "xformers/kernels/params/rows.h"
#include "xformers/ops/common/check.h"
#include "xformers/ops/common/expanded.h"

namespace xformers::ops {

inline DType to_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat: return DType::kFloat32;
    case at::kDouble: return DType::kFloat64;
    case at::kBFloat16: return DType::kBFloat16;
    case at::kHalf: return DType::kFloat16;
    default: break;
  }
  Check("xformers").fail("the dtype of a kernel", describe_dtype(dtype), "fp32, fp64, bf16 or fp16", "convert it");
}

// Undefined where there is none.
inline at::Tensor in_dtype(const OptionalTensor& t, at::ScalarType dtype) {
  return t ? t->to(dtype).contiguous() : at::Tensor();
}

// CUDA's kernels take weights of 16 bits as they are, beside data of fp32 and 16 bits; any others in what x is computed
// in.
inline at::ScalarType dtype_beside(const at::Tensor& x, at::ScalarType dtype) {
  const bool narrow = dtype == at::kBFloat16 || dtype == at::kHalf;
  return narrow && x.scalar_type() != at::kDouble ? dtype : compute_dtype(x);
}

inline const void* data_or_null(const at::Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

// [rows, width] of which rows are contiguous; nothing where there is no tensor.
inline Rows to_rows(const at::Tensor& matrix) {
  if (!matrix.defined()) return {};
  return {.data = const_cast<void*>(matrix.const_data_ptr()), .stride = matrix.stride(0)};
}

}  // namespace xformers::ops
