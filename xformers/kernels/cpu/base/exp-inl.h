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

// tanh(x) to 2 ulp, near 0 too; NaN stays NaN. With m = exp(2 x) - 1 it is m / (m + 2); m = 2^n (2^f - 1) + (2^n - 1)
// for 2 x log2(e) = n + f, by the series of 2^f - 1, loses no digits where x is small.
HWY_INLINE Vec<float> tanh_vec(Vec<float> x) {
  const Tag<float> d;
  const auto bound = hn::Set(d, 40.0f);  // tanh is 1 from 26 on
  const auto power = hn::Min(bound, hn::Max(hn::Neg(bound), hn::Mul(x, hn::Set(d, 2.88539008f))));
  const auto whole = hn::Round(power), f = hn::Sub(power, whole);
  auto series = hn::Set(d, 1.52527338e-5f);  // ln(2)^k / k!, k = 7 ... 1
  for (const float next :
       {1.54035304e-4f, 1.33335581e-3f, 9.61812911e-3f, 5.55041087e-2f, 0.240226507f, 0.693147181f}) {
    series = hn::MulAdd(series, f, hn::Set(d, next));
  }
  series = hn::Mul(series, f);
#if XFORMERS_AVX512
  const Vec<float> scale{_mm512_scalef_ps(_mm512_set1_ps(1), whole.raw)};
#else
  const hn::RebindToSigned<Tag<float> > di;
  const auto scale = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, whole), hn::Set(di, 127))));
#endif
  const auto m = hn::MulAdd(scale, series, hn::Sub(scale, hn::Set(d, 1.0f))), sum = hn::Add(m, hn::Set(d, 2.0f));
#if XFORMERS_AVX512
  const auto near = hn::ApproximateReciprocal(sum);  // to 2^-14: one Newton step is enough
  return hn::Mul(m, hn::Mul(near, hn::NegMulAdd(sum, near, hn::Set(d, 2.0f))));
#else
  return hn::Div(m, sum);
#endif
}
HWY_INLINE Vec<double> tanh_vec(Vec<double> x) {
  const Tag<double> d;
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Tanh(d, x));
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
