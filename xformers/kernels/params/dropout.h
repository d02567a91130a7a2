// What dropout is asked to do, wherever it happens.
#pragma once

#include <cstdint>

namespace xformers {

// What is dropped: see base/philox.h. p in [0, 1]; 0 switches it off, 1 drops everything.
struct Dropout {
  double p = 0;
  uint64_t philox_seed = 0, philox_offset = 0;
  const uint64_t* device_state = nullptr;  // CUDA: seed and offset in device memory, read in place of the two above
};

}  // namespace xformers
