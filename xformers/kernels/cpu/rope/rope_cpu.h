// Rotary embeddings on the CPU. Offsets and lengths are checked first: xformers::Error, before anything is written,
// when a sequence does not fit its queries or the caches.
#pragma once

#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/rope.h"

namespace xformers::cpu {

void rope_padded(const RopePaddedParams& params, const Threads& threads);
void rotary(const RotaryParams& params, const Threads& threads);

}  // namespace xformers::cpu
