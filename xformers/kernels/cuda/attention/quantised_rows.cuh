// Reads elements of query, key and value one by one, or eight by eight through registers, where the fast loader can't:
// any alignment, int4 and fp8.
#pragma once

#include <cuda_fp8.h>

#include "xformers/kernels/cuda/base/elements.cuh"
#include "xformers/kernels/params/attention.h"

namespace xformers::cuda {

template <class C>
struct Coefficients {
  C scale, shift;
  __device__ explicit Coefficients(uint32_t word)
      : scale(__half2float(__ushort_as_half(static_cast<unsigned short>(word)))),
        shift(__half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)))) {}
};

// Element `d` of a quantised row of head_dim `dim`; `coefficients` is the row's word of k_scale_shift (kFp8 only).
template <class C>
__device__ inline C dequantised(const uint32_t* row, const uint32_t* coefficients, const KvQuantization& how, int dim,
                                int d) {
  if (how.format == KvFormat::kInt4) {
    const int groups = static_cast<int>(how.num_groups);
    const Coefficients<C> c(row[d / (dim / groups)]);
    return static_cast<C>(row[groups + d / 8] >> 4 * (d % 8) & 15u) * c.scale + c.shift;
  }
  const Coefficients<C> c(*coefficients);
  __nv_fp8_e4m3 code;
  code.__x = static_cast<__nv_fp8_storage_t>(row[d / 4] >> 8 * (d % 4));
  return static_cast<C>(static_cast<float>(code)) * c.scale + c.shift;
}

// Eight elements from `from`, zeros from `count` on; a vector load where aligned.
template <class T>
__device__ inline uint4 load_chunk(const T* from, int count, bool aligned) {
  static_assert(sizeof(T) == 2);
  if (aligned && count >= 8) return *reinterpret_cast<const uint4*>(from);
  alignas(16) T chunk[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) chunk[i] = i < count ? from[i] : to_element<T>(0.0f);
  return *reinterpret_cast<const uint4*>(chunk);
}
template <class T>
__device__ inline uint4 load_quantised_chunk(const uint32_t* row, const uint32_t* coefficients,
                                             const KvQuantization& how, int dim, int d) {
  alignas(16) T chunk[8];
#pragma unroll
  for (int i = 0; i < 8; ++i)
    chunk[i] = to_element<T>(d + i < dim ? dequantised<float>(row, coefficients, how, dim, d + i) : 0.0f);
  return *reinterpret_cast<const uint4*>(chunk);
}

}  // namespace xformers::cuda
