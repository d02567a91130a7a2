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

inline constexpr double kLog2e = 1.4426950408889634;

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
  with_activation(activation, [&]<Activation kActivation>() {
#pragma unroll
    for (C& x : z) {
      const C positive = positive_part(x);
      if constexpr (kActivation == Activation::kRelu) x = positive;
      if constexpr (kActivation == Activation::kLeakyRelu) x = x >= 0 ? x : C(0.01) * x;
      if constexpr (kActivation == Activation::kGelu) x = x * gelu_gate<T>(x, factor);
      if constexpr (kActivation == Activation::kSquaredRelu) x = factor.by * positive * positive;
      if constexpr (kActivation == Activation::kSmelu) {
        const C bent = positive_part(x + 2);
        x = factor.by * (x >= 2 ? x : C(0.125) * bent * bent);
      }
      if constexpr (kActivation == Activation::kStarRelu) {
        x = factor.by * (C(0.8944) * positive * positive - C(0.4472));
      }
    }
  });
}

// z becomes factor times the derivative there; at a kink, that of the upper side.
template <class T, int kCount>
__device__ __forceinline__ void slope(Activation activation, const Factor<Compute<T>>& factor,
                                      Compute<T> (&z)[kCount]) {
  using C = Compute<T>;
  with_activation(activation, [&]<Activation kActivation>() {
#pragma unroll
    for (C& x : z) {
      if constexpr (kActivation == Activation::kNone) x = factor.by;
      if constexpr (kActivation == Activation::kRelu) x = x >= 0 ? factor.by : C(0);
      if constexpr (kActivation == Activation::kLeakyRelu) x = x >= 0 ? factor.by : C(0.01) * factor.by;
      if constexpr (kActivation == Activation::kGelu) {
        const C gate = gelu_gate<T>(x, factor), rest = 1 - gate * factor.inverse;
        x = x * (C(3 * kGelu3) * x * x + C(kGelu1)) * rest * gate + gate;
      }
      if constexpr (kActivation == Activation::kSquaredRelu) x = factor.by * (2 * positive_part(x));
      if constexpr (kActivation == Activation::kSmelu) {
        const C bent = C(0.25) * positive_part(x + 2);
        x = bent > 1 ? factor.by : factor.by * bent;
      }
      if constexpr (kActivation == Activation::kStarRelu) x = factor.by * (C(1.7888) * positive_part(x));
    }
  });
}

}  // namespace xformers::cuda
