// The activations of the fused layer and their slopes, over the elements of one access. Which one is known at run time:
// a branch that all threads take alike, once per access.
#pragma once

#include "xformers/kernels/cuda/base/sigmoid.cuh"
#include "xformers/kernels/params/bias_act_dropout.h"

namespace xformers::cuda {

// Of what an activation gives, and its inverse, which is free where something is inverted anyway.
template <class C>
struct Factor {
  C by, inverse;
};

// Gelu in its tanh form: z * g, g = (1 + tanh(u)) / 2 = sigmoid(2 u), 2 u = z * (kGelu1 + kGelu3 * z^2).
inline constexpr double kGelu1 = 1.5957691216057307118, kGelu3 = 0.071354816272600242, kLog2e = 1.4426950408889634;

// g * factor.
template <class T>
__device__ __forceinline__ Compute<T> gelu_gate(Compute<T> z, const Factor<Compute<T>>& factor) {
  using C = Compute<T>;
  if constexpr (sizeof(T) == 2) {
    constexpr float k1 = static_cast<float>(-kLog2e * kGelu1), k3 = static_cast<float>(-kLog2e * kGelu3);
    return fast_reciprocal(factor.inverse * fast_exp2(z * (k3 * z * z + k1)) + factor.inverse);
  } else {
    return factor.by * sigmoid<T>(z * (C(kGelu3) * z * z + C(kGelu1)));
  }
}

// max(0, z), NaN kept.
template <class C>
__device__ __forceinline__ C positive_part(C z) {
  return z < 0 ? C(0) : z;
}

// Whether a factor of z is one of the result: then it is applied with the bias, where it costs nothing.
constexpr bool is_homogeneous(Activation activation) {
  return activation == Activation::kNone || activation == Activation::kRelu || activation == Activation::kLeakyRelu;
}

// z becomes the activation's value, times factor unless is_homogeneous.
template <class T, int kCount>
__device__ __forceinline__ void activate(Activation activation, const Factor<Compute<T>>& factor,
                                         Compute<T> (&z)[kCount]) {
  using C = Compute<T>;
  const auto each = [&](const auto& fn) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) z[i] = fn(z[i]);
  };
  switch (activation) {
    case Activation::kNone: return;
    case Activation::kRelu: return each([](C z) { return positive_part(z); });
    case Activation::kLeakyRelu: return each([](C z) { return z >= 0 ? z : C(0.01) * z; });
    case Activation::kGelu: return each([&](C z) { return z * gelu_gate<T>(z, factor); });
    case Activation::kSquaredRelu: return each([&](C z) { return factor.by * positive_part(z) * positive_part(z); });
    case Activation::kSmelu:
      return each([&](C z) {
        const C bent = positive_part(z + 2);
        return factor.by * (z >= 2 ? z : C(0.125) * bent * bent);
      });
    case Activation::kStarRelu:
      return each([&](C z) { return factor.by * (C(0.8944) * positive_part(z) * positive_part(z) - C(0.4472)); });
  }
}

// z becomes factor times the derivative there; at a kink, that of the upper side.
template <class T, int kCount>
__device__ __forceinline__ void slope(Activation activation, const Factor<Compute<T>>& factor,
                                      Compute<T> (&z)[kCount]) {
  using C = Compute<T>;
  const auto each = [&](const auto& fn) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) z[i] = fn(z[i]);
  };
  switch (activation) {
    case Activation::kNone: return each([&](C) { return factor.by; });
    case Activation::kRelu: return each([&](C z) { return z >= 0 ? factor.by : C(0); });
    case Activation::kLeakyRelu: return each([&](C z) { return z >= 0 ? factor.by : C(0.01) * factor.by; });
    case Activation::kGelu:
      return each([&](C z) {
        const C gate = gelu_gate<T>(z, factor), rest = 1 - gate * factor.inverse;
        return z * (C(3 * kGelu3) * z * z + C(kGelu1)) * rest * gate + gate;
      });
    case Activation::kSquaredRelu: return each([&](C z) { return factor.by * (2 * positive_part(z)); });
    case Activation::kSmelu:
      return each([&](C z) {
        const C bent = C(0.25) * positive_part(z + 2);
        return bent > 1 ? factor.by : factor.by * bent;
      });
    case Activation::kStarRelu: return each([&](C z) { return factor.by * (C(1.7888) * positive_part(z)); });
  }
}

}  // namespace xformers::cuda
