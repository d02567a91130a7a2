// Walking over rows in vectors of the compute type: whole ones, then the first n lanes of a last one. One algorithm is
// written as a generic lambda over (place, how many lanes count).
#pragma once

#include <hwy/cache_control.h>

#include <type_traits>

#include "xformers/kernels/base/dtype.h"
#include "xformers/kernels/cpu/base/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

struct Whole {};  // all lanes

template <class T>
using Compute = typename ComputeOf<T>::type;

template <class T>
HWY_INLINE Vec<Compute<T>> load_n(const T* p, Whole) {
  return load_vec(p);
}
// Zero in the lanes from n on, and nothing read behind p[n - 1].
template <class T>
HWY_INLINE Vec<Compute<T>> load_n(const T* p, ptrdiff_t n) {
  alignas(64) T part[lanes<Compute<T>>()] = {};
  for (ptrdiff_t i = 0; i < n; ++i) part[i] = p[i];
  return load_vec(part);
}
template <class T>
HWY_INLINE void store_n(Vec<Compute<T>> v, T* p, Whole) {
  store_vec(v, p);
}
#if defined(__AVX512BF16__)
// One instruction instead of ten; numbers below the smallest normal one become 0.
HWY_INLINE void store_n(Vec<float> v, BFloat16* p, Whole) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v.raw));
}
#endif
template <class T>
HWY_INLINE void store_n(Vec<Compute<T>> v, T* p, ptrdiff_t n) {
  alignas(64) T part[lanes<Compute<T>>()];
  store_vec(v, part);
  for (ptrdiff_t i = 0; i < n; ++i) p[i] = part[i];
}

// v with zeros in the lanes that don't count.
template <class V>
HWY_INLINE V only_n(V v, Whole) {
  return v;
}
template <class V>
HWY_INLINE V only_n(V v, ptrdiff_t n) {
  const hn::DFromV<V> d;
  return hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(n)), v);
}

// fn(i, Whole) at every vector of [0, count), then fn(i, n) at the rest.
template <class C, class Fn>
HWY_INLINE void for_each_vec(ptrdiff_t count, const Fn& fn) {
  ptrdiff_t i = 0;
  for (; i + 2 * lanes<C>() <= count; i += 2 * lanes<C>()) {
    fn(i, Whole());
    fn(i + lanes<C>(), Whole());
  }
  for (; i + lanes<C>() <= count; i += lanes<C>()) fn(i, Whole());
  if (i < count) fn(i, count - i);
}

template <class C>
HWY_INLINE C sum_lanes(Vec<C> v) {
  return hn::GetLane(hn::SumOfLanes(Tag<C>(), v));
}

// Several sums over a row at once: fn(i, n, sums) adds to sums[0 ... kSums). Lanes are added up in double every kSpan
// elements, so that the error does not grow with the width; several sets of sums take turns, so that no addition waits
// for the one before it.
template <class C, int kSums, class Fn>
HWY_INLINE void sum_row(ptrdiff_t count, double (&totals)[kSums], const Fn& fn) {
  constexpr ptrdiff_t kSpan = 2048;
  constexpr int kSets = kSums > 2 ? 2 : 4;
  for (double& total : totals) total = 0;
  for (ptrdiff_t begin = 0; begin < count; begin += kSpan) {
    const ptrdiff_t end = min_of(begin + kSpan, count);
    Vec<C> sums[kSets][kSums];
    for (auto& set : sums) {
      for (Vec<C>& sum : set) sum = hn::Zero(Tag<C>());
    }
    ptrdiff_t i = begin;
    for (; i + kSets * lanes<C>() <= end; i += kSets * lanes<C>()) {
      for (int set = 0; set < kSets; ++set) fn(i + set * lanes<C>(), Whole(), sums[set]);
    }
    for_each_vec<C>(end - i, [&](ptrdiff_t j, auto n) { fn(i + j, n, sums[0]); });
    for (int s = 0; s < kSums; ++s) {
      Vec<C> sum = sums[0][s];
      for (int set = 1; set < kSets; ++set) sum = hn::Add(sum, sums[set][s]);
      totals[s] += static_cast<double>(sum_lanes<C>(sum));
    }
  }
}

// Copies past the caches (where the processor can): the lines of `to` are not read first. Needs finish_streams() before
// another thread reads `to`.
HWY_INLINE void stream_bytes(void* to, const void* from, size_t bytes) {
  const hn::ScalableTag<uint8_t> d;
  constexpr size_t kVector = hn::MaxLanes(hn::ScalableTag<uint8_t>());
  auto* out = static_cast<uint8_t*>(to);
  const auto* in = static_cast<const uint8_t*>(from);
  const size_t misaligned = reinterpret_cast<uintptr_t>(out) % kVector;
  size_t i = 0;
  if (misaligned != 0) {
    i = kVector - misaligned < bytes ? kVector - misaligned : bytes;
    std::memcpy(out, in, i);
  }
  for (; i + kVector <= bytes; i += kVector) hn::Stream(hn::LoadU(d, in + i), d, out + i);
  if (i < bytes) std::memcpy(out + i, in + i, bytes - i);
}
HWY_INLINE void finish_streams() { hwy::FlushStream(); }

// One vector past the caches; p a multiple of the vector's bytes. Needs finish_streams() like stream_bytes().
template <class T>
HWY_INLINE void stream_vec(Vec<Compute<T>> v, T* p) {
  if constexpr (sizeof(T) == sizeof(Compute<T>)) {
    hn::Stream(v, Tag<Compute<T>>(), p);
  } else {
    const hn::Rebind<uint16_t, Tag<float>> d16;
    alignas(64) T part[lanes<float>()];
    store_n(v, part, Whole());
    hn::Stream(hn::Load(d16, reinterpret_cast<const uint16_t*>(part)), d16, reinterpret_cast<uint16_t*>(p));
  }
}
#if defined(__AVX512BF16__)
HWY_INLINE void stream_vec(Vec<float> v, BFloat16* p) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v.raw)));
}
#endif

// How many elements come before p is aligned to a vector, at most count.
template <class T>
HWY_INLINE ptrdiff_t elements_to_alignment(const T* p, ptrdiff_t count) {
  constexpr uintptr_t kBytes = lanes<Compute<T>>() * sizeof(T);
  const uintptr_t past = reinterpret_cast<uintptr_t>(p) % kBytes;
  return min_of(past == 0 ? 0 : static_cast<ptrdiff_t>((kBytes - past) / sizeof(T)), count);
}

// out[i ...] = value(i, n), i over the vectors of [0, count).
template <bool kStream, class T, class Fn>
HWY_INLINE void map_row(T* HWY_RESTRICT out, ptrdiff_t count, const Fn& value) {
  using C = Compute<T>;
  ptrdiff_t head = 0;
  if constexpr (kStream) {
    head = elements_to_alignment(out, count);
    if (head > 0) store_n(value(ptrdiff_t{0}, head), out, head);
  }
  for_each_vec<C>(count - head, [&](ptrdiff_t j, auto n) {
    const ptrdiff_t i = head + j;
    if constexpr (kStream && std::is_same_v<decltype(n), Whole>) {
      stream_vec(value(i, n), out + i);
    } else {
      store_n(value(i, n), out + i, n);
    }
  });
}

// fn.template operator()<T>() for the element type.
template <class Fn>
HWY_INLINE void with_element(DType dtype, const Fn& fn) {
  switch (dtype) {
    case DType::kFloat32: return fn.template operator()<float>();
    case DType::kFloat64: return fn.template operator()<double>();
    case DType::kBFloat16: return fn.template operator()<BFloat16>();
    case DType::kFloat16: return fn.template operator()<Float16>();
  }
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
