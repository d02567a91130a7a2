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
  } else {
    return one;
  }
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
