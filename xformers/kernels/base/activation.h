// The activations of the fused layer, and from one known at run time to one known at compile time.
#pragma once

#include <cstdint>

#include "xformers/kernels/base/inline.h"

namespace xformers {

// The derivatives take the upper branch at the border.
enum class Activation : uint8_t {
  kNone,         // z
  kRelu,         // z >= 0: z, else 0
  kLeakyRelu,    // z >= 0: z, else 0.01 z
  kGelu,         // z / 2 * (1 + tanh(sqrt(2 / pi) * (z + 0.044715 z^3)))
  kSquaredRelu,  // z >= 0: z^2, else 0
  kSmelu,        // z >= 2: z, z >= -2: (z + 2)^2 / 8, else 0
  kStarRelu,     // 0.8944 * squared_relu(z) - 0.4472
  kGeluExact,    // z / 2 * (1 + erf(z / sqrt(2))); of the CPU's kernels alone
};

// Gelu in another form: z * g, g = (1 + tanh(u)) / 2 = sigmoid(2 u), 2 u = z * (kGelu1 + kGelu3 * z^2).
inline constexpr double kGelu1 = 1.5957691216057307118, kGelu3 = 0.071354816272600242;

[[noreturn]] void fail_activation(Activation activation);  // xformers::Error

// fn.template operator()<kActivation>()
template <class Fn>
XFORMERS_INLINE void with_activation(Activation activation, const Fn& fn) {
  switch (activation) {
    case Activation::kNone: return fn.template operator()<Activation::kNone>();
    case Activation::kRelu: return fn.template operator()<Activation::kRelu>();
    case Activation::kLeakyRelu: return fn.template operator()<Activation::kLeakyRelu>();
    case Activation::kGelu: return fn.template operator()<Activation::kGelu>();
    case Activation::kSquaredRelu: return fn.template operator()<Activation::kSquaredRelu>();
    case Activation::kSmelu: return fn.template operator()<Activation::kSmelu>();
    case Activation::kStarRelu: return fn.template operator()<Activation::kStarRelu>();
#if defined(__CUDACC__)
    case Activation::kGeluExact: break;
#else
    case Activation::kGeluExact: return fn.template operator()<Activation::kGeluExact>();
#endif
  }
#if defined(__CUDA_ARCH__)
  __trap();
#else
  fail_activation(activation);
#endif
}

}  // namespace xformers
