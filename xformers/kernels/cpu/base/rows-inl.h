// Walking over rows in vectors of the compute type: whole ones, then the first n lanes of a last one. One algorithm is
// written as a generic lambda over (place, how many lanes count).
#pragma once

#include <hwy/cache_control.h>

#include <type_traits>

#include "xformers/kernels/base/dispatch.h"
#include "xformers/kernels/cpu/base/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

struct Whole {};  // all lanes

// For lambdas in loops: as functions of their own they would keep what they capture in memory.
#define XFORMERS_INLINED __attribute__((always_inline))

template <class T>
using Compute = typename ComputeOf<T>::type;

template <class T>
HWY_INLINE Vec<Compute<T>> load_n(const T* p, Whole) {
  return load_vec(p);
}
#if XFORMERS_AVX512
// Each element goes to the high half of its lane: one instruction instead of two.
HWY_INLINE Vec<float> widen_bf16(__m256i elements) {
  const __m512i from = _mm512_slli_epi32(hn::Iota(hn::RebindToSigned<Tag<float>>(), 0).raw, 16);
  return Vec<float>{
      _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xAAAAAAAAu, from, _mm512_castsi256_si512(elements)))};
}
HWY_INLINE Vec<float> load_n(const BFloat16* p, Whole) {
  return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
#endif
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

// Zero in the lanes from n on, and nothing read behind p[n - 1].
template <class T>
HWY_INLINE Vec<Compute<T>> load_n(const T* p, ptrdiff_t n) {
#if XFORMERS_AVX512
  if constexpr (sizeof(T) == sizeof(Compute<T>)) {
    const Tag<T> d;
    return hn::MaskedLoad(hn::FirstN(d, static_cast<size_t>(n)), d, p);
  } else {
    const __m256i part = _mm256_maskz_loadu_epi16(_bzhi_u32(0xffffu, static_cast<unsigned>(n)), p);
    if constexpr (std::is_same_v<T, BFloat16>) return widen_bf16(part);
    return Vec<float>{_mm512_cvtph_ps(part)};
  }
#else
  alignas(64) T part[lanes<Compute<T>>()] = {};
  for (ptrdiff_t i = 0; i < n; ++i) part[i] = p[i];
  return load_vec(part);
#endif
}
template <class T>
HWY_INLINE void store_n(Vec<Compute<T>> v, T* p, ptrdiff_t n) {
#if XFORMERS_AVX512
  if constexpr (sizeof(T) == sizeof(Compute<T>)) {
    const Tag<T> d;
    hn::BlendedStore(v, hn::FirstN(d, static_cast<size_t>(n)), d, p);
    return;
  }
#endif
  alignas(64) T part[lanes<Compute<T>>()];
  store_n(v, part, Whole());
#if XFORMERS_AVX512
  const __m256i elements = _mm256_load_si256(reinterpret_cast<const __m256i*>(part));
  _mm256_mask_storeu_epi16(p, _bzhi_u32(0xffffu, static_cast<unsigned>(n)), elements);
#else
  for (ptrdiff_t i = 0; i < n; ++i) p[i] = part[i];
#endif
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
  } else if constexpr (lanes<float>() * sizeof(T) < 16) {  // less than can be streamed
    store_n(v, p, Whole());
  } else {
    const hn::Rebind<uint16_t, Tag<float>> d16;
    alignas(64) T part[lanes<float>()];
    store_n(v, part, Whole());
    hn::Stream(hn::Load(d16, reinterpret_cast<const uint16_t*>(part)), d16, reinterpret_cast<uint16_t*>(p));
  }
}
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
HWY_INLINE void stream_vec(Vec<float> v, Float16* p) {
  const hn::Rebind<hwy::float16_t, Tag<float>> d;
  const hn::Rebind<uint16_t, Tag<float>> d16;
  hn::Stream(hn::BitCast(d16, hn::DemoteTo(d, v)), d16, reinterpret_cast<uint16_t*>(p));
}
#endif

// Two neighbouring vectors, past the caches if `stream`: then p is a multiple of a vector's bytes.
inline constexpr uintptr_t kLineBytes = 64;
template <class T>
HWY_INLINE void store_pair(Vec<Compute<T>> first, Vec<Compute<T>> second, T* p, bool stream) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, BFloat16>) {  // one instruction for both, and a whole line
    const auto pair = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second.raw, first.raw));
    if (!stream) {
      _mm512_storeu_si512(p, pair);
    } else if (reinterpret_cast<uintptr_t>(p) % kLineBytes == 0) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(p), pair);
    } else {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(pair));
      _mm256_stream_si256(reinterpret_cast<__m256i*>(p) + 1, _mm512_extracti64x4_epi64(pair, 1));
    }
    return;
  }
#endif
  constexpr ptrdiff_t kLanes = lanes<Compute<T>>();
  if (stream) {
    stream_vec(first, p);
    stream_vec(second, p + kLanes);
  } else {
    store_n(first, p, Whole());
    store_n(second, p + kLanes, Whole());
  }
}

// How many elements come before p is at the start of a line, at most count.
template <class T>
HWY_INLINE ptrdiff_t elements_to_line(const T* p, ptrdiff_t count) {
  const uintptr_t past = reinterpret_cast<uintptr_t>(p) % kLineBytes;
  return min_of(past == 0 ? 0 : static_cast<ptrdiff_t>((kLineBytes - past) / sizeof(T)), count);
}

// outs[k][i ...] = results[k] of values(i, n, results), i over the vectors of [0, count), in rising order. Past the
// caches if `stream`, unless the rows lie differently between the borders of vectors.
template <int kOuts, class T, class Fn>
HWY_INLINE void map_rows(bool stream, T* const (&outs)[kOuts], ptrdiff_t count, const Fn& values) {
  using C = Compute<T>;
  constexpr ptrdiff_t kLanes = lanes<C>();
  const auto one = [&](ptrdiff_t i, auto n) XFORMERS_INLINED {
    Vec<C> results[kOuts];
    values(i, n, results);
    for (int k = 0; k < kOuts; ++k) store_n(results[k], outs[k] + i, n);
  };
  ptrdiff_t i = 0;
  if (stream) {
    const ptrdiff_t head = elements_to_line(outs[0], count);
    for (int k = 1; k < kOuts; ++k) stream &= elements_to_line(outs[k], count) % kLanes == head % kLanes;
    if (stream && head > 0) {
      if (head % kLanes > 0) one(0, head % kLanes);
      for (i = head % kLanes; i < head; i += kLanes) one(i, Whole());
    }
  }
  // Where a pair of vectors is a line, an output whose lines begin in the middle of the others' pairs writes the second
  // half of one pair with the first of the next: half lines would leave the processor one by one.
  constexpr bool kMayBeLate = kOuts > 1 && 2 * kLanes * sizeof(T) == kLineBytes;
  const ptrdiff_t begin = i;
  Vec<C> carried[kOuts];
  bool late[kOuts];
  for (int k = 0; k < kOuts; ++k) late[k] = kMayBeLate && stream && elements_to_line(outs[k] + begin, kLanes) == kLanes;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    Vec<C> results[2][kOuts];
    for (int half = 0; half < 2; ++half) values(i + half * kLanes, Whole(), results[half]);
    for (int k = 0; k < kOuts; ++k) {
      if (kMayBeLate && late[k]) {
        if (i > begin) {
          store_pair(carried[k], results[0][k], outs[k] + i - kLanes, stream);
        } else {
          store_n(results[0][k], outs[k] + i, Whole());
        }
        carried[k] = results[1][k];
      } else {
        store_pair(results[0][k], results[1][k], outs[k] + i, stream);
      }
    }
  }
  for (int k = 0; k < kOuts; ++k) {
    if (kMayBeLate && late[k] && i > begin) store_n(carried[k], outs[k] + i - kLanes, Whole());
  }
  for (; i + kLanes <= count; i += kLanes) one(i, Whole());
  if (i < count) one(i, count - i);
}

// out[i ...] = value(i, n).
template <bool kStream, class T, class Fn>
HWY_INLINE void map_row(T* HWY_RESTRICT out, ptrdiff_t count, const Fn& value) {
  T* const outs[1] = {out};
  map_rows(kStream, outs, count,
           [&](ptrdiff_t i, auto n, auto* results) XFORMERS_INLINED { results[0] = value(i, n); });
}

// Large tensors come from memory no faster than they are asked for, and the processor's own prefetching waits for a few
// reads of every page: what comes later is asked for while the current results are written. Into the second-level
// cache; p may point anywhere.
HWY_INLINE void prefetch(const void* p) { __builtin_prefetch(p, /*rw=*/0, /*locality=*/2); }
// What comes a while behind p, for tensors that are walked through once, row behind row.
inline constexpr ptrdiff_t kPrefetchBytes = 4096;
HWY_INLINE void prefetch_behind(const void* p) {
  prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + kPrefetchBytes));
}

// fn(T()) for the element type. With the rounding to bf16, code for bf16 alone: XFORMERS_BY_ISA takes the other types
// to the compilation without it.
template <class Fn>
HWY_INLINE void with_element(DType dtype, const Fn& fn) {
#if defined(__AVX512BF16__)
  if (dtype != DType::kBFloat16) fail_dtype(dtype);
  fn(BFloat16());
#else
  dispatch_dtype<BFloat16, Float16>(dtype, fn);
#endif
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
