// Tokens of one head, in chunks: read into and written from the compute type, whatever the element type.
#pragma once

#include "xformers/kernels/cpu/base/exp-inl.h"
#include "xformers/kernels/cpu/gemm/gemm_fma-inl.h"
#include "xformers/kernels/params/linear_attention.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

inline constexpr ptrdiff_t kTokens = 64;  // of a chunk
inline constexpr ptrdiff_t kTile = 16;    // sizes are rounded up to it, as transposition and products need

// C[rows, cols] (+)= left[rows, depth] right[depth, cols]; left of any strides, cols a multiple of kTile.
template <class C>
struct Strided {
  const C* data;
  ptrdiff_t row_stride, depth_stride;
};
template <class C>
HWY_NOINLINE void product(C* c, ptrdiff_t c_stride, Strided<C> left, const C* right, ptrdiff_t right_stride,
                          ptrdiff_t rows, ptrdiff_t cols, ptrdiff_t depth, bool accumulate) {
  FmaGemm<C>::multiply(c, c_stride, {left.data, left.row_stride, left.depth_stride}, {right, right_stride}, rows, cols,
                       depth, accumulate);
}

// exp(x) of any x: 0 far below, infinity from 88 (706) on; NaN stays NaN.
template <class C>
HWY_INLINE Vec<C> exp_anywhere(Vec<C> x) {
  const Tag<C> d;
  const auto highest = hn::Set(d, sizeof(C) == 4 ? C(88) : C(706));
  return hn::IfThenElse(hn::Gt(x, highest), hn::Inf(d), exp_below_zero<C>(hn::Min(highest, x)));
}

// fn(i) at every vector of [0, cols), cols a multiple of kTile.
template <class C, class Fn>
HWY_INLINE void for_each_tile_vec(ptrdiff_t cols, const Fn& fn) {
  for (ptrdiff_t i = 0; i < cols; i += lanes<C>()) fn(i);
}

// Rows [begin, begin + count) of one head.
struct TokenRange {
  int64_t batch, head, begin;
  ptrdiff_t count;

  HWY_INLINE ptrdiff_t padded() const { return round_up(count, kTile); }
  HWY_INLINE int64_t offset(const HeadsTensor& t) const { return t.offset(batch, begin, head, 0); }
};

// fn(T()) with the element type, of those that are computed in C.
template <class C, class Fn>
HWY_INLINE void with_element_of(DType dtype, const Fn& fn) {
  with_element(dtype, [&]<class T>(T) {
    if constexpr (std::is_same_v<Compute<T>, C>) fn(T());
  });
}

// to [padded, dim to kTile] = factor * tokens; zeros around them.
template <class C>
HWY_NOINLINE void load_tokens(DType dtype, const HeadsTensor& from, const TokenRange& tokens, ptrdiff_t dim, C* to,
                              C factor = 1) {
  const ptrdiff_t width = round_up(dim, kTile);
  with_element_of<C>(dtype, [&]<class T>(T) {
    const T* const rows = static_cast<const T*>(from.data) + tokens.offset(from);
    const auto scale = hn::Set(Tag<C>(), factor);
    for (ptrdiff_t i = 0; i < tokens.count; ++i) {
      const T* const row = rows + i * from.seq_stride;
      C* const target = to + i * width;
      zero_row(target + dim / kTile * kTile, width - dim / kTile * kTile);
      for_each_vec<C>(dim, [&](ptrdiff_t j, auto n) { store_n(hn::Mul(load_n(row + j, n), scale), target + j, n); });
    }
  });
  zero_row(to + tokens.count * width, (tokens.padded() - tokens.count) * width);
}

// factors[i] * from [count, dim to kTile]
template <class C, class Factor>
HWY_NOINLINE void store_tokens(DType dtype, const HeadsTensor& to, const TokenRange& tokens, ptrdiff_t dim,
                               const C* from, const Factor& factor) {
  const ptrdiff_t width = round_up(dim, kTile);
  with_element_of<C>(dtype, [&]<class T>(T) {
    T* const rows = static_cast<T*>(to.data) + tokens.offset(to);
    for (ptrdiff_t i = 0; i < tokens.count; ++i) store_row(from + i * width, factor(i), rows + i * to.seq_stride, dim);
  });
}

// Whether all numbers are finite: then a weight of 0 hides them.
template <class C>
HWY_NOINLINE bool all_finite(DType dtype, const HeadsTensor& from, const TokenRange& tokens, ptrdiff_t dim) {
  const Tag<C> d;
  auto sum = hn::Zero(d);
  with_element_of<C>(dtype, [&]<class T>(T) {
    const T* const rows = static_cast<const T*>(from.data) + tokens.offset(from);
    for (ptrdiff_t i = 0; i < tokens.count; ++i) {
      for_each_vec<C>(dim, [&](ptrdiff_t j, auto n) {
        sum = hn::MulAdd(load_n(rows + i * from.seq_stride + j, n), hn::Zero(d), sum);
      });
    }
  });
  return sum_lanes<C>(sum) == C(0);
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
