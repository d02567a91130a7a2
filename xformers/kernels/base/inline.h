// How small functions are declared that every unit compiles for itself.
#pragma once

// Plain arithmetic for the host and the device alike. Forced inline: units compiled for different instruction sets must
// not share one copy.
#if defined(__CUDACC__)
#define XFORMERS_INLINE __host__ __device__ constexpr __forceinline__
#else
#define XFORMERS_INLINE constexpr inline __attribute__((always_inline))
#endif
