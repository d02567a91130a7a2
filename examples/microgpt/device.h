// Where the model computes.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>

#include "examples/microgpt/options.h"

namespace microgpt {

// Replaces "auto" in `compute`: the first NVIDIA GPU where PyTorch sees one and xformers has kernels for it, else the
// CPU; bfloat16 on a GPU, float32 on the CPU. Throws Error where "cuda" is asked for and can't be had. To be called
// once, before any tensor is made.
void choose_device(ComputeOptions& compute);

// Of a ComputeOptions that choose_device() has seen.
at::Device device_of(const ComputeOptions& compute);

// Bytes of GPU memory that tensors take, at most since the last call of forget_gpu_peak().
int64_t gpu_peak_bytes();
void forget_gpu_peak();

}  // namespace microgpt
