// The random state that dropout takes.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace xformers::ops {

// int64[2] on `device`: seed and offset, from its default generator.
at::Tensor draw_philox_state(at::Device device = at::kCPU);

// The same for dropout of probability p, or none where dropout draws nothing (draws() of dropout.h).
std::optional<at::Tensor> draw_dropout_state(double p, at::Device device);

}  // namespace xformers::ops
