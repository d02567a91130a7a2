// The random state that dropout takes.
#pragma once

#include <ATen/core/Tensor.h>

namespace xformers::ops {

at::Tensor draw_philox_state();  // int64[2] on the CPU: seed and offset, from the default generator

}  // namespace xformers::ops
