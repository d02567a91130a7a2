// Neighbouring elements moved by one access of up to 16 bytes, and the type that they are computed in.
//
//   C x[kCount];
//   unpack(load<kCount>(row + column), x);  // kCount 1: any alignment of T
//   store(row + column, pack<T>(x));
#pragma once

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "xformers/kernels/base/dispatch.h"
#include "xformers/kernels/cuda/base/elements.cuh"
#include "xformers/kernels/params/rows.h"

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

// Elements as they lie in memory; more than 16 bytes are moved by several accesses.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Packed {
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

// The same in another type than Compute<T>.
template <class T, int kCount, class C>
  requires(!std::is_same_v<C, Compute<T>>)
__device__ __forceinline__ void unpack(const Packed<T, kCount>& from, C (&to)[kCount]) {
  Compute<T> numbers[kCount];
  unpack(from, numbers);
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = static_cast<C>(numbers[i]);
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

template <class T, int kCount, class C>
  requires(!std::is_same_v<C, Compute<T>>)
__device__ __forceinline__ Packed<T, kCount> pack(const C (&from)[kCount]) {
  Compute<T> numbers[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) numbers[i] = static_cast<Compute<T>>(from[i]);
  return pack<T>(numbers);
}

// kCount numbers of a type known at run time, which is C or a 16-bit one: weights beside data of another type.
template <int kCount, class C>
__device__ __forceinline__ void load_as(const void* from, DType dtype, int64_t column, C (&to)[kCount]) {
  if (dtype == DType::kBFloat16) {
    unpack(load<kCount>(static_cast<const __nv_bfloat16*>(from) + column), to);
  } else if (dtype == DType::kFloat16) {
    unpack(load<kCount>(static_cast<const __half*>(from) + column), to);
  } else {
    unpack(load<kCount>(static_cast<const C*>(from) + column), to);
  }
}

// Whether accesses of `bytes` fit: to a pointer, or to every row of a matrix (stride, width in elements).
inline bool is_aligned(const void* data, int64_t bytes = 16) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }
inline bool rows_are_aligned(const void* data, int64_t stride, DType dtype, int64_t bytes = 16) {
  return is_aligned(data, bytes) && stride * static_cast<int64_t>(size_of(dtype)) % bytes == 0;
}

// Whether matrices of this width (no data: there is none) are made of 16-byte accesses.
inline bool rows_fit(std::initializer_list<const Rows*> matrices, int64_t width, DType dtype) {
  bool fit = width * static_cast<int64_t>(size_of(dtype)) % 16 == 0;
  for (const Rows* rows : matrices) fit &= !rows->data || rows_are_aligned(rows->data, rows->stride, dtype);
  return fit;
}

// fn(T()) for the element type; on the device too.
template <class Fn>
XFORMERS_INLINE decltype(auto) with_element(DType dtype, const Fn& fn) {
  return dispatch_dtype<__nv_bfloat16, __half>(dtype, fn);
}

// fn.template operator()<T, kCount>(): accesses of 16 bytes where `vectors` (everything is aligned so), else element by
// element; of fp64 only where kWide.
template <bool kWide = true, class Fn>
void with_vectors(DType dtype, bool vectors, const Fn& fn) {
  with_element(dtype, [&]<class T>(T) {
    if constexpr (kWide || sizeof(T) < 8) {
      if (vectors) return fn.template operator()<T, kVectorOf<T>>();
    }
    fn.template operator()<T, 1>();
  });
}

}  // namespace xformers::cuda
