// The random state that dropout takes.
#pragma once

#include <ATen/core/Tensor.h>

namespace xformers::ops {

// int64[2] on `device`: seed and offset, from its default generator.
at::Tensor draw_philox_state(at::Device device = at::kCPU);

}  // namespace xformers::ops
