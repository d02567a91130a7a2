// Element types that kernels read and write.
#pragma once

#include <cstddef>
#include <cstdint>

namespace xformers {

enum class DType : uint8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

constexpr size_t size_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// What elements of a dtype are computed in.
constexpr DType compute_dtype(DType dtype) { return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32; }

constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "fp32";
    case DType::kFloat64: return "fp64";
    case DType::kBFloat16: return "bf16";
    case DType::kFloat16: return "fp16";
  }
  return "?";
}

}  // namespace xformers
