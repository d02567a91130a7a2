// Turning one head: sines and cosines of a position, once for all its heads, and the rotation itself.
#pragma once

#include <type_traits>

#include "xformers/kernels/cpu/base/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// Sines and cosines for every element of a head, as the rotation multiplies them:
//   out[i] = x[i] * cos[i] + x[partner of i] * sin[i],   sin negative where i is a real part.
template <class C>
struct Turn {
  C* cos;  // [head_dim]
  C* sin;  // [head_dim]
};

// Highway's sine and cosine are exact to a few ulp up to 39000: angles are first taken to [-pi, pi]. 2 pi comes in
// three parts, of which the first two have 26 bits, so that their products with up to 2^27 turns are exact without FMA
// too.
HWY_INLINE Vec<double> to_first_turn(Vec<double> angle) {
  const Tag<double> d;
  const auto turns = hn::Round(hn::Mul(angle, hn::Set(d, 0.15915494309189533577)));
  auto near = hn::NegMulAdd(turns, hn::Set(d, 0x1.921fb50000000p+2), angle);
  near = hn::NegMulAdd(turns, hn::Set(d, 0x1.110b460000000p-24), near);
  return hn::NegMulAdd(turns, hn::Set(d, 0x1.1a62633145c07p-52), near);
}

// inverse: turn back. One copy for all element types: sines and cosines are long.
template <class C>
HWY_NOINLINE void fill_turn(double position, bool inverse, const double* frequencies, ptrdiff_t head_dim,
                            bool adjacents, const Turn<C>& turn) {
  const Tag<double> d;
  const ptrdiff_t half = head_dim / 2;
  const C sign = inverse ? C(-1) : C(1);
  alignas(64) double sines[lanes<double>()], cosines[lanes<double>()];
  for_each_vec<double>(half, [&](ptrdiff_t j, auto n) {
    const auto angle = to_first_turn(hn::Mul(hn::Set(d, position), load_n(frequencies + j, n)));
    hn::Store(hn::Sin(d, angle), d, sines);
    hn::Store(hn::Cos(d, angle), d, cosines);
    const ptrdiff_t count = min_of(lanes<double>(), half - j);
    for (ptrdiff_t i = 0; i < count; ++i) {
      const C sine = sign * static_cast<C>(sines[i]), cosine = static_cast<C>(cosines[i]);
      const ptrdiff_t re = adjacents ? 2 * (j + i) : j + i, im = adjacents ? re + 1 : re + half;
      turn.cos[re] = turn.cos[im] = cosine;
      turn.sin[re] = -sine;
      turn.sin[im] = sine;
    }
  });
}

HWY_INLINE Vec<float> swap_pairs(Vec<float> v) { return hn::Shuffle2301(v); }
HWY_INLINE Vec<double> swap_pairs(Vec<double> v) { return hn::Shuffle01(v); }

// x and out must not overlap; `next` elements behind x lies a head that is turned later.
template <bool kStream, class T>
HWY_INLINE void turn_head(const T* HWY_RESTRICT x, ptrdiff_t next, T* HWY_RESTRICT out, ptrdiff_t head_dim,
                          bool adjacents, const Turn<Compute<T>>& turn) {
  if (adjacents) {
    const auto turned = [&](ptrdiff_t i, auto n) XFORMERS_INLINED {
      if constexpr (kStream) prefetch(x + next + i);
      const auto value = load_n(x + i, n);
      return hn::MulAdd(value, load_n(turn.cos + i, n), hn::Mul(swap_pairs(value), load_n(turn.sin + i, n)));
    };
    const bool whole_pairs = elements_to_line(out, head_dim) % 2 == 0;  // before the first whole line
    whole_pairs ? map_row<kStream>(out, head_dim, turned) : map_row<false>(out, head_dim, turned);
    return;
  }
  // Both halves at once: their elements and angles are read once.
  using C = Compute<T>;
  const ptrdiff_t half = head_dim / 2;
  const C *cos = turn.cos + half, *sin = turn.sin + half;
  T* const halves[2] = {out, out + half};
  map_rows(kStream, halves, half, [&](ptrdiff_t i, auto n, Vec<C>* results) XFORMERS_INLINED {
    if constexpr (kStream) {
      prefetch(x + next + i);
      prefetch(x + next + half + i);
    }
    const auto re = load_n(x + i, n), im = load_n(x + half + i, n), c = load_n(cos + i, n), s = load_n(sin + i, n);
    results[0] = hn::NegMulAdd(im, s, hn::Mul(re, c));
    results[1] = hn::MulAdd(re, s, hn::Mul(im, c));
  });
}

// The same with products and sums in fp64, for element types that are computed in fp32.
template <bool kStream, class T>
HWY_INLINE void turn_head(const T* HWY_RESTRICT x, ptrdiff_t /*next*/, T* HWY_RESTRICT out, ptrdiff_t head_dim,
                          bool adjacents, const Turn<double>& turn)
  requires(!std::is_same_v<T, double>)
{
  const ptrdiff_t half = head_dim / 2;
  for (ptrdiff_t i = 0; i < head_dim; ++i) {
    const ptrdiff_t partner = adjacents ? (i ^ 1) : i < half ? i + half : i - half;
    out[i] = from_compute<T>(static_cast<double>(to_compute(x[i])) * turn.cos[i] +
                             static_cast<double>(to_compute(x[partner])) * turn.sin[i]);
  }
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
