// Bits of packed numbers.
#pragma once

#include <cstdint>

namespace xformers::cuda {

// For each half of a word, 16 copies of its highest bit.
__device__ __forceinline__ uint32_t sign_of_halves(uint32_t word) {
  uint32_t signs;
  asm("prmt.b32 %0, %1, %1, 0xbb99;" : "=r"(signs) : "r"(word));  // bytes 3 3 1 1, each as its sign
  return signs;
}

}  // namespace xformers::cuda
