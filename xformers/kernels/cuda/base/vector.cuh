// Neighbouring elements moved by one access of up to 16 bytes, and the type that they are computed in.
//
//   C x[kCount];
//   unpack(load<kCount>(row + column), x);  // kCount 1: any alignment of T
//   store(row + column, pack<T>(x));
#pragma once

#include <cstdint>
#include <type_traits>

#include "xformers/kernels/base/dtype.h"
#include "xformers/kernels/cuda/base/elements.cuh"

namespace xformers::cuda {

// Arithmetic is done in fp32, for fp64 in fp64.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
__device__ __forceinline__ Compute<T> to_compute(T x) {
  return static_cast<Compute<T>>(x);
}

template <class T>
inline constexpr int kVectorOf = 16 / sizeof(T);  // elements of a 16-byte access

// Elements as they lie in memory.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Packed {
  T at[kCount];
};

template <int kCount, class T>
__device__ __forceinline__ Packed<T, kCount> load(const T* from) {
  return *reinterpret_cast<const Packed<T, kCount>*>(from);
}

template <int kCount, class T>
__device__ __forceinline__ void store(T* to, const Packed<T, kCount>& values) {
  *reinterpret_cast<Packed<T, kCount>*>(to) = values;
}

// Two 16-bit elements at a time: taken one by one each would occupy a register of its own.
template <class T, int kCount>
__device__ __forceinline__ void unpack(const Packed<T, kCount>& from, Compute<T> (&to)[kCount]) {
  if constexpr (sizeof(T) == 2 && kCount % 2 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      const uint32_t pair = reinterpret_cast<const uint32_t&>(from.at[i]);
      if constexpr (std::is_same_v<T, __nv_bfloat16>) {  // the upper half of an fp32
        to[i] = __uint_as_float(pair << 16);
        to[i + 1] = __uint_as_float(pair & 0xffff0000u);
      } else {
        const float2 both = __half22float2(reinterpret_cast<const __half2&>(pair));
        to[i] = both.x;
        to[i + 1] = both.y;
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = to_compute(from.at[i]);
  }
}

// One rounding.
template <class T, int kCount>
__device__ __forceinline__ Packed<T, kCount> pack(const Compute<T> (&from)[kCount]) {
  Packed<T, kCount> to;
  if constexpr (sizeof(T) == 2 && kCount % 2 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      uint32_t& pair = reinterpret_cast<uint32_t&>(to.at[i]);
      if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        const __nv_bfloat162 both = __floats2bfloat162_rn(from[i], from[i + 1]);
        pair = reinterpret_cast<const uint32_t&>(both);
      } else {
        const __half2 both = __floats2half2_rn(from[i], from[i + 1]);
        pair = reinterpret_cast<const uint32_t&>(both);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to.at[i] = to_element<T>(from[i]);
  }
  return to;
}

// kCount numbers of a type known at run time, which is C or a 16-bit one: weights beside data of another type.
template <int kCount, class C>
__device__ __forceinline__ void load_as(const void* from, DType dtype, int64_t column, C (&to)[kCount]) {
  const auto convert = [&](const auto& packed) {
    Compute<std::remove_cvref_t<decltype(packed.at[0])>> numbers[kCount];
    unpack(packed, numbers);
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = static_cast<C>(numbers[i]);
  };
  if (dtype == DType::kBFloat16) {
    convert(load<kCount>(static_cast<const __nv_bfloat16*>(from) + column));
  } else if (dtype == DType::kFloat16) {
    convert(load<kCount>(static_cast<const __half*>(from) + column));
  } else if constexpr (sizeof(C) * kCount <= 16) {
    convert(load<kCount>(static_cast<const C*>(from) + column));
  } else {  // two accesses of 16 bytes
    constexpr int kHalf = kCount / 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto packed = load<kHalf>(static_cast<const C*>(from) + column + half * kHalf);
#pragma unroll
      for (int i = 0; i < kHalf; ++i) to[half * kHalf + i] = packed.at[i];
    }
  }
}

// Whether accesses of `bytes` fit: to a pointer, or to every row of a matrix (stride, width in elements).
inline bool is_aligned(const void* data, int64_t bytes = 16) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }
inline bool rows_are_aligned(const void* data, int64_t stride, DType dtype, int64_t bytes = 16) {
  return is_aligned(data, bytes) && stride * static_cast<int64_t>(size_of(dtype)) % bytes == 0;
}

// Calls fn with a value of the element type.
template <class Fn>
auto with_element(DType dtype, const Fn& fn) {
  switch (dtype) {
    case DType::kFloat64: return fn(double{});
    case DType::kBFloat16: return fn(__nv_bfloat16{});
    case DType::kFloat16: return fn(__half{});
    default: return fn(float{});
  }
}

}  // namespace xformers::cuda
