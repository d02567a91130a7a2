// "FNet" (Lee-Thorp et al., arXiv:2105.03824): the real part of the Fourier transform over tokens and features,
//
//   out[s, d] = sum over s', d' of x[s', d'] cos(2 pi (s s' / S + d d' / D)).
//
// Its other half mirrors the one that a transform of real numbers computes. The transform is its own transpose, so the
// gradient is the transform of the gradient.
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::nn::functional {

struct FourierMixArgs {
  static constexpr const char* kName = "fourier_mix";
  using Result = at::Tensor;
  at::Tensor x;  // [..., seqlen, dim]; fp16 and bf16 are transformed in fp32

  static constexpr auto arguments() { return std::tuple{ops::arg("x", &FourierMixArgs::x)}; }
  void check() const;
  at::Tensor empty() const;
};

// In x's shape and dtype.
at::Tensor fourier_mix(const FourierMixArgs& args);

}  // namespace xformers::nn::functional
