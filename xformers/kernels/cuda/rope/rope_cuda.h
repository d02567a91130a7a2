// Rotary embeddings on CUDA: on the given stream, without waiting for it. Plain C++; no workspace.
#pragma once

#include "xformers/kernels/cuda/base/stream.h"
#include "xformers/kernels/params/rope.h"

namespace xformers::cuda {

// Offsets and lengths are read on the device, so nothing is refused: a query that belongs to no sequence, or whose slot
// lies outside the caches, comes out as NaN and leaves the caches alone. out_q may be q.
void rope_padded(const RopePaddedParams& params, const Stream& stream);
void rotary(const RotaryParams& params, const Stream& stream);

}  // namespace xformers::cuda
