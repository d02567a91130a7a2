// The random state that dropout takes.
#pragma once

#include <ATen/core/Tensor.h>

namespace xformers::ops {

// int64[2]: seed and offset, from the default generator.
at::Tensor draw_philox_state(at::Device device = at::kCPU);

}  // namespace xformers::ops
