// The products of decode-inl.h in the compute type: rows of K and V are widened as they are loaded.
#pragma once

#include "xformers/kernels/cpu/attention/key_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// The first `count` elements as a vector, the rest zero.
template <class T>
HWY_INLINE auto load_first(const T* p, ptrdiff_t count) {
  using C = typename ComputeOf<T>::type;
  alignas(64) C widened[lanes<C>()] = {};
  for (ptrdiff_t i = 0; i < count; ++i) widened[i] = static_cast<C>(to_compute(p[i]));
  return hn::Load(Tag<C>(), widened);
}

// Lane i of the result is the sum over the lanes of v[i]; kCount = lanes. Adds neighbours, then neighbours of those.
template <int kCount, class C>
HWY_INLINE Vec<C> sum_each(Vec<C>* v) {
  const Tag<C> d;
  if constexpr (kCount == 1) {
    return v[0];
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < kCount / 2; ++i) {
      v[i] = hn::Add(hn::ConcatEven(d, v[2 * i + 1], v[2 * i]), hn::ConcatOdd(d, v[2 * i + 1], v[2 * i]));
    }
    return sum_each<kCount / 2, C>(v);
  }
}

template <class T>
struct FmaProducts {
  using C = typename ComputeOf<T>::type;
  using Query = C;
  static constexpr ptrdiff_t kLanes = lanes<C>();
  static constexpr ptrdiff_t kStep = kLanes;   // rows of Q and O have multiples of it
  static constexpr ptrdiff_t kValueKeys = 16;  // how many are added to O at a time

  static HWY_INLINE void take_query(const T* q, ptrdiff_t dim, Query* to) {
    convert_row(q, to, dim);
    zero_row(to + dim, round_up(dim, kStep) - dim);
  }

  // q k^T of kRows rows and kLanes / kRows keys: lane = key * kRows + row. One accumulator each, summed together.
  template <int kRows>
  static HWY_INLINE Vec<C> scores(const Query* q, ptrdiff_t q_stride, const T* const (&keys)[kLanes / kRows],
                                  ptrdiff_t dim) {
    const Tag<C> d;
    constexpr int kTileKeys = kLanes / kRows;
    Vec<C> acc[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) acc[i] = hn::Zero(d);
    const auto add = [&](int j, Vec<C> key, ptrdiff_t c) HWY_ATTR {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
        acc[j * kRows + r] = hn::MulAdd(hn::LoadU(d, q + r * q_stride + c), key, acc[j * kRows + r]);
    };
    ptrdiff_t c = 0;
    for (; c + kLanes <= dim; c += kLanes) {
#pragma GCC unroll 16
      for (int j = 0; j < kTileKeys; ++j) add(j, load_vec(keys[j] + c), c);
    }
    if (c < dim) {
#pragma GCC unroll 16
      for (int j = 0; j < kTileKeys; ++j) add(j, load_first(keys[j] + c, dim - c), c);
    }
    return sum_each<kLanes, C>(acc);
  }

  // O = factor * O + P V: weights [keys][kRows], factor and O of kRows rows.
  template <int kRows>
  static HWY_INLINE void add_values(C* out, ptrdiff_t out_stride, const C* weights, const Rows<T>& v, ptrdiff_t count,
                                    ptrdiff_t dim_v, const C* factor) {
    ptrdiff_t c = 0;
    for (; c + 4 * kLanes <= dim_v; c += 4 * kLanes)
      add_columns<kRows, 4>(out + c, out_stride, weights, v, c, count, kLanes, factor);
    for (; c + kLanes <= dim_v; c += kLanes)
      add_columns<kRows, 1>(out + c, out_stride, weights, v, c, count, kLanes, factor);
    if (c < dim_v) add_columns<kRows, 1>(out + c, out_stride, weights, v, c, count, dim_v - c, factor);
  }

  // Where dims are kept in another order during the sums.
  static HWY_INLINE void order_dims(C*, ptrdiff_t) {}

 private:
  // kVecs vectors of dims from c on, of which each has `width`.
  template <int kRows, int kVecs>
  static HWY_INLINE void add_columns(C* out, ptrdiff_t out_stride, const C* weights, const Rows<T>& v, ptrdiff_t c,
                                     ptrdiff_t count, ptrdiff_t width, const C* factor) {
    const Tag<C> d;
    Vec<C> acc[kRows][kVecs];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < kVecs; ++i)
        acc[r][i] = hn::Mul(hn::Set(d, factor[r]), hn::LoadU(d, out + r * out_stride + i * kLanes));
    }
    for (ptrdiff_t n = 0; n < count; ++n) {
      const T* const value_row = v.data + n * v.stride + c;
      Vec<C> value[kVecs];
#pragma GCC unroll 4
      for (int i = 0; i < kVecs; ++i)
        value[i] = width < kLanes ? load_first(value_row, width) : load_vec(value_row + i * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const auto p = hn::Set(d, weights[n * kRows + r]);
#pragma GCC unroll 4
        for (int i = 0; i < kVecs; ++i) acc[r][i] = hn::MulAdd(p, value[i], acc[r][i]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < kVecs; ++i) hn::StoreU(acc[r][i], d, out + r * out_stride + i * kLanes);
    }
  }
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
