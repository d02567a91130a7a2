// The activations of the fused layer and their slopes, on vectors of the compute type.
#pragma once

#include "xformers/kernels/cpu/base/exp-inl.h"
#include "xformers/kernels/params/bias_act_dropout.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

template <class V>
struct GeluParts {
  V z, gate, square;  // z, g, z^2
};
template <class T>
HWY_INLINE GeluParts<Vec<Compute<T>>> gelu_parts(Vec<Compute<T>> z_arg) {
  using C = Compute<T>;
  const Tag<C> d;
  const auto z = hn::Max(hn::Set(d, C(-9.9)), z_arg);  // from there on gelu is 0; keeps sigmoid's argument above -87
  const auto square = hn::Mul(z, z);
  if constexpr (sizeof(T) < sizeof(C)) {  // straight to the power of two
    constexpr double kLog2E = 1.4426950408889634074;
    const auto factor = hn::MulAdd(square, hn::Set(d, C(-kGelu3 * kLog2E)), hn::Set(d, C(-kGelu1 * kLog2E)));
    return {z, inverse_of_one_plus(exp2_vec<4>(hn::Mul(z, factor))), square};
  } else {
    const auto factor = hn::MulAdd(square, hn::Set(d, C(kGelu3)), hn::Set(d, C(kGelu1)));
    return {z, sigmoid<T>(hn::Mul(z, factor)), square};
  }
}

// What the exact gelu is made of, with a = |z|: the normal distribution's lower tail at -a, and its density there.
// Their ratio is t P(t), t = 1 / (1 + kReach a), P fitted for the least relative error over 0 <= a <= 13.2: 1.2e-8 with
// nine coefficients, 5e-6 with six. Beyond 13.2 both are 0 in fp32.
template <class V>
struct NormalParts {
  V z, tail, density;  // z within +-13.2 (fp32)
};
template <class T>
HWY_INLINE NormalParts<Vec<float>> normal_parts(Vec<float> z_arg) {
  const Tag<float> d;
  const auto z = hn::Max(hn::Set(d, -13.2f), hn::Min(hn::Set(d, 13.2f), z_arg));  // NaN comes second and stays
  const auto a = hn::Abs(z);
  const auto power = exp_below_zero<T>(hn::Mul(hn::Mul(z, hn::Set(d, -0.5f)), z));
  Vec<float> ratio;
  if constexpr (sizeof(T) < sizeof(float)) {
    const auto t = inverse_of_one_plus(hn::Mul(a, hn::Set(d, 0.31f)));
    ratio = hn::MulAdd(t, hn::Set(d, -0.07392808632f), hn::Set(d, 0.1804468121f));
    constexpr float kRest[] = {0.01574928875f, 0.1334269335f, 0.1204421248f, 0.1238606062f};
    for (float coefficient : kRest) {
      ratio = hn::MulAdd(ratio, t, hn::Set(d, coefficient));
    }
    ratio = hn::Mul(ratio, t);
  } else {
    const auto t = inverse_of_one_plus(hn::Mul(a, hn::Set(d, 0.21f)));
    ratio = hn::MulAdd(t, hn::Set(d, -0.07226845319f), hn::Set(d, 0.286611835f));
    constexpr float kRest[] = {-0.3366380691f, 0.3569213382f,  -0.09932178243f, 0.127285743f,
                               0.06853630666f, 0.08516785396f, 0.08370522551f};
    for (float coefficient : kRest) {
      ratio = hn::MulAdd(ratio, t, hn::Set(d, coefficient));
    }
    ratio = hn::Mul(ratio, t);
  }
  return {z, hn::Mul(ratio, power), hn::Mul(power, hn::Set(d, 0.398942280f))};
}
template <class T>
HWY_INLINE NormalParts<Vec<double>> normal_parts(Vec<double> z_arg) {
  const Tag<double> d;
  const auto z = hn::Max(hn::Set(d, -38.0), hn::Min(hn::Set(d, 38.0), z_arg));
  alignas(64) double tail[lanes<double>()];
  hn::Store(hn::Abs(z), d, tail);
  for (ptrdiff_t i = 0; i < lanes<double>(); ++i) tail[i] = 0.5 * __builtin_erfc(tail[i] * 0.70710678118654752440);
  const auto power = hn::Exp(d, hn::Mul(hn::Mul(z, hn::Set(d, -0.5)), z));
  return {z, hn::Load(d, tail), hn::Mul(power, hn::Set(d, 0.39894228040143267794))};
}

template <Activation kActivation, class T>
HWY_INLINE Vec<Compute<T>> activate(Vec<Compute<T>> z) {
  using C = Compute<T>;
  const Tag<C> d;
  const auto zero = hn::Zero(d);
  if constexpr (kActivation == Activation::kRelu) {
    return hn::Max(zero, z);  // NaN comes second and stays
  } else if constexpr (kActivation == Activation::kLeakyRelu) {
    return hn::Max(hn::Mul(z, hn::Set(d, C(0.01))), z);
  } else if constexpr (kActivation == Activation::kGelu) {
    const auto gelu = gelu_parts<T>(z);
    return hn::Mul(gelu.z, gelu.gate);
  } else if constexpr (kActivation == Activation::kSquaredRelu) {
    return hn::Mul(hn::Max(zero, z), hn::Max(zero, z));
  } else if constexpr (kActivation == Activation::kSmelu) {
    const auto two = hn::Set(d, C(2)), bent = hn::Max(zero, hn::Add(z, two));
    return hn::IfThenElse(hn::Ge(z, two), z, hn::Mul(hn::Mul(bent, bent), hn::Set(d, C(0.125))));
  } else if constexpr (kActivation == Activation::kStarRelu) {
    const auto positive = hn::Max(zero, z);
    return hn::MulAdd(hn::Mul(positive, hn::Set(d, C(0.8944))), positive, hn::Set(d, C(-0.4472)));
  } else if constexpr (kActivation == Activation::kGeluExact) {
    const auto normal = normal_parts<T>(z);
    return hn::NegMulAdd(hn::Abs(normal.z), normal.tail, hn::Max(zero, z));
  } else {
    return z;
  }
}

// The derivative; at a kink, that of the upper side.
template <Activation kActivation, class T>
HWY_INLINE Vec<Compute<T>> activation_slope(Vec<Compute<T>> z) {
  using C = Compute<T>;
  const Tag<C> d;
  const auto zero = hn::Zero(d), one = hn::Set(d, C(1));
  if constexpr (kActivation == Activation::kRelu) {
    return hn::IfThenElseZero(hn::Ge(z, zero), one);
  } else if constexpr (kActivation == Activation::kLeakyRelu) {
    return hn::IfThenElse(hn::Ge(z, zero), one, hn::Set(d, C(0.01)));
  } else if constexpr (kActivation == Activation::kGelu) {
    const auto gelu = gelu_parts<T>(z);
    const auto inner = hn::MulAdd(gelu.square, hn::Set(d, C(3 * kGelu3)), hn::Set(d, C(kGelu1)));  // d(2 u) / dz
    return hn::MulAdd(hn::Mul(hn::Mul(gelu.z, inner), gelu.gate), hn::Sub(one, gelu.gate), gelu.gate);
  } else if constexpr (kActivation == Activation::kSquaredRelu) {
    return hn::Mul(hn::Max(zero, z), hn::Set(d, C(2)));
  } else if constexpr (kActivation == Activation::kSmelu) {
    const auto bent = hn::Mul(hn::Max(zero, hn::Add(z, hn::Set(d, C(2)))), hn::Set(d, C(0.25)));
    return hn::Min(one, bent);
  } else if constexpr (kActivation == Activation::kStarRelu) {
    return hn::Mul(hn::Max(zero, z), hn::Set(d, C(1.7888)));
  } else if constexpr (kActivation == Activation::kGeluExact) {
    const auto normal = normal_parts<T>(z);
    const auto below = hn::IfThenElse(hn::Lt(z, zero), normal.tail, hn::Sub(one, normal.tail));
    return hn::MulAdd(normal.z, normal.density, below);
  } else {
    return one;
  }
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
