// The activations of the fused layer and their slopes, over the elements of one access. Which one is known at run time:
// a branch that all threads take alike, once per access.
#pragma once

#include "xformers/kernels/cuda/base/sigmoid.cuh"
#include "xformers/kernels/params/bias_act_dropout.h"

namespace xformers::cuda {

// Gelu in its tanh form: z * g, g = (1 + tanh(u)) / 2 = sigmoid(2 u), 2 u = z * (kGelu1 + kGelu3 * z^2).
inline constexpr double kGelu1 = 1.5957691216057307118, kGelu3 = 0.071354816272600242;

// max(0, z), NaN kept.
template <class C>
__device__ __forceinline__ C positive_part(C z) {
  return z < 0 ? C(0) : z;
}

template <class T, int kCount>
__device__ __forceinline__ void activate(Activation activation, Compute<T> (&z)[kCount]) {
  using C = Compute<T>;
  const auto each = [&](const auto& fn) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) z[i] = fn(z[i]);
  };
  switch (activation) {
    case Activation::kNone: return;
    case Activation::kRelu: return each([](C z) { return positive_part(z); });
    case Activation::kLeakyRelu: return each([](C z) { return z >= 0 ? z : C(0.01) * z; });
    case Activation::kGelu: return each([](C z) { return z * sigmoid<T>(z * (C(kGelu3) * z * z + C(kGelu1))); });
    case Activation::kSquaredRelu: return each([](C z) { return positive_part(z) * positive_part(z); });
    case Activation::kSmelu:
      return each([](C z) {
        const C bent = positive_part(z + 2);
        return z >= 2 ? z : C(0.125) * bent * bent;
      });
    case Activation::kStarRelu:
      return each([](C z) { return C(0.8944) * positive_part(z) * positive_part(z) - C(0.4472); });
  }
}

// z becomes the derivative there; at a kink, that of the upper side.
template <class T, int kCount>
__device__ __forceinline__ void slope(Activation activation, Compute<T> (&z)[kCount]) {
  using C = Compute<T>;
  const auto each = [&](const auto& fn) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) z[i] = fn(z[i]);
  };
  switch (activation) {
    case Activation::kNone: return each([](C) { return C(1); });
    case Activation::kRelu: return each([](C z) { return z >= 0 ? C(1) : C(0); });
    case Activation::kLeakyRelu: return each([](C z) { return z >= 0 ? C(1) : C(0.01); });
    case Activation::kGelu:
      return each([](C z) {
        const C square = z * z, gate = sigmoid<T>(z * (C(kGelu3) * square + C(kGelu1)));
        return z * (C(3 * kGelu3) * square + C(kGelu1)) * gate * (1 - gate) + gate;
      });
    case Activation::kSquaredRelu: return each([](C z) { return 2 * positive_part(z); });
    case Activation::kSmelu:
      return each([](C z) {
        const C bent = C(0.25) * positive_part(z + 2);
        return bent > 1 ? C(1) : bent;
      });
    case Activation::kStarRelu: return each([](C z) { return C(1.7888) * positive_part(z); });
  }
}

}  // namespace xformers::cuda
