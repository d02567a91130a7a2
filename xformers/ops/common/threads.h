// LibTorch's intra-op threads, as kernels use threads.
#pragma once

#include "xformers/kernels/cpu/base/parallel_for.h"

namespace xformers::ops {

cpu::Threads torch_threads();  // at::get_num_threads(), or 1 inside a parallel region

}  // namespace xformers::ops
