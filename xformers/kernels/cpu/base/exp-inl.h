// The exponential function and what is made of it, as exact as the element type T shows.
#pragma once

#include "xformers/kernels/cpu/base/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// exp(kSign * x), |x| up to 87. The rounding error of x * log2(e) would grow with x: fp32 takes it along.
template <class T, int kSign = 1>
HWY_INLINE Vec<float> exp_vec(Vec<float> x) {
  const Tag<float> d;
  const auto log2_e = hn::Set(d, kSign * 1.44269504f);
  const auto power = hn::Mul(x, log2_e);
  if constexpr (sizeof(T) < sizeof(float)) return exp2_vec<4>(power);
#if HWY_NATIVE_FMA
  const auto more_digits = hn::Set(d, kSign * 1.92596303e-8f);
  const auto rest = hn::MulAdd(x, more_digits, hn::MulSub(x, log2_e, power));
  const auto value = exp2_vec<5>(power);
  return hn::MulAdd(value, hn::Mul(rest, hn::Set(d, 0.693147181f)), value);
#else
  return hn::Exp(d, kSign > 0 ? x : hn::Neg(x));
#endif
}

// What sigmoid takes: below this it is as good as 0. NaN stays NaN.
template <class C>
HWY_INLINE Vec<C> bounded_for_sigmoid(Vec<C> x) {
  return hn::Max(hn::Set(Tag<C>(), sizeof(C) == 4 ? C(-87) : C(-700)), x);  // NaN comes second and stays
}

// 1 / (1 + x)
HWY_INLINE Vec<float> inverse_of_one_plus(Vec<float> x) {
  const Tag<float> d;
  const auto sum = hn::Add(hn::Set(d, 1.0f), x), near = hn::ApproximateReciprocal(sum);
  return hn::Mul(near, hn::NegMulAdd(sum, near, hn::Set(d, 2.0f)));  // one Newton step
}

// 1 / (1 + exp(-x)) for x that is bounded so.
template <class T>
HWY_INLINE Vec<float> sigmoid(Vec<float> x) {
  if constexpr (sizeof(T) == sizeof(float)) x = hn::Min(hn::Set(Tag<float>(), 87.0f), x);  // infinity, too, has a rest
  return inverse_of_one_plus(exp_vec<T, -1>(x));
}
template <class T>
HWY_INLINE Vec<double> sigmoid(Vec<double> x) {
  const Tag<double> d;
  const auto one = hn::Set(d, 1.0);
  return hn::Div(one, hn::Add(one, hn::Exp(d, hn::Neg(hn::Min(hn::Set(d, 700.0), x)))));
}

// exp(x) for x <= 0, also -inf; NaN stays NaN.
template <class T>
HWY_INLINE Vec<float> exp_below_zero(Vec<float> x) {
  if constexpr (sizeof(T) < sizeof(float)) return exp_vec<T>(x);
  const Tag<float> d;
  const auto lowest = hn::Set(d, -87.0f);
  return hn::IfThenZeroElse(hn::Lt(x, lowest), exp_vec<T>(hn::Max(lowest, x)));
}
template <class T>
HWY_INLINE Vec<double> exp_below_zero(Vec<double> x) {
  const Tag<double> d;
  const auto lowest = hn::Set(d, -700.0);
  const auto power = hn::Exp(d, hn::Max(lowest, x));
  return hn::IfThenZeroElse(hn::Lt(x, lowest), hn::IfThenElse(hn::IsNaN(x), x, power));
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
