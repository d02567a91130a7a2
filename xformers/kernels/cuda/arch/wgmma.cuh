// Products of a warpgroup of 128 threads (sm_90a), asynchronous: acc[64, N] (+)= a[64, 16] b[16, N] in fp32, over
// CUTLASS's atoms. Warp w of the group holds rows 16 w ... of `acc`, laid out as fragment.cuh says.
//
//   wgmma::begin();  multiply_ss(...);  multiply_ss(...);  wgmma::commit();  ...  wgmma::wait<0>();
//
// Between a product and the wait for it, nothing may touch its registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <cute/arch/mma_sm90_gmma_ext.hpp>
#include <type_traits>
#include <utility>

namespace xformers::cuda::wgmma {

// A tile in shared memory as copies of boxes of 64 elements x `rows` with the 128-byte swizzle leave it: panels of rows
// of 128 bytes, at multiples of 1024. The descriptor says where it is, and how far apart its eights of rows are; panels
// for an operand whose rows are not what is summed over (`transposed`: V of P V).
inline constexpr int kPanel = 64;  // elements of 16 bits

struct Operand {
  uint64_t descriptor;

  // `panel_rows`: of a panel, where the operand has more of them side by side.
  __device__ __forceinline__ explicit Operand(uint32_t smem, int panel_rows = 0) {
    constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 / 16} << 32;
    const uint64_t panels = panel_rows == 0 ? 1 : static_cast<uint64_t>(panel_rows) * 128 / 16;
    descriptor = kSwizzle128 | kEightRows | panels << 16 | (smem & 0x3ffff) / 16;
  }
  // The same, so many bytes on.
  __device__ __forceinline__ uint64_t at(int bytes) const { return descriptor + static_cast<uint64_t>(bytes / 16); }
};

__device__ __forceinline__ void begin() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int kStillInFlight>
__device__ __forceinline__ void wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kStillInFlight) : "memory");
}
// What computes these registers stays before this, what reads them behind it: the compiler knows of no product in
// flight.
__device__ __forceinline__ void hold(float& x) { asm volatile("" : "+f"(x)::"memory"); }
template <class T, int kCount>
__device__ __forceinline__ void hold(T (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) hold(x[i]);
}

// Registers per thread of the warpgroup: the pool of a block is handed round.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

namespace detail {

using cute::SM90::GMMA::Major;
using cute::SM90::GMMA::ScaleOut;

// CUTLASS's atoms for N columns: both operands in shared memory (Ss), or both with rows that are summed over (Tt), or a
// in registers (Rs).
template <class T, int kN>
struct Atoms;
#define XFORMERS_WGMMA(N)                                                              \
  template <>                                                                          \
  struct Atoms<__nv_bfloat16, N> {                                                     \
    using Ss = cute::SM90::GMMA::MMA_64x##N##x16_F32BF16BF16_SS<Major::K, Major::K>;   \
    using Tt = cute::SM90::GMMA::MMA_64x##N##x16_F32BF16BF16_SS<Major::MN, Major::MN>; \
    using Rs = cute::SM90::GMMA::MMA_64x##N##x16_F32BF16BF16_RS<Major::K, Major::MN>;  \
  };                                                                                   \
  template <>                                                                          \
  struct Atoms<__half, N> {                                                            \
    using Ss = cute::SM90::GMMA::MMA_64x##N##x16_F32F16F16_SS<Major::K, Major::K>;     \
    using Tt = cute::SM90::GMMA::MMA_64x##N##x16_F32F16F16_SS<Major::MN, Major::MN>;   \
    using Rs = cute::SM90::GMMA::MMA_64x##N##x16_F32F16F16_RS<Major::K, Major::MN>;    \
  };
XFORMERS_WGMMA(32)
XFORMERS_WGMMA(64)
XFORMERS_WGMMA(80)
XFORMERS_WGMMA(96)
XFORMERS_WGMMA(112)
XFORMERS_WGMMA(128)
XFORMERS_WGMMA(160)
XFORMERS_WGMMA(176)
XFORMERS_WGMMA(192)
XFORMERS_WGMMA(256)
#undef XFORMERS_WGMMA

}  // namespace detail

// acc = or += a b^T: rows of a and b are what is summed over, 16 elements of each. `fresh`: acc is not read.
template <class T, int kTiles>
__device__ __forceinline__ void multiply_ss(float (&acc)[1][kTiles][4], uint64_t a, uint64_t b, bool fresh) {
  using Atom = typename detail::Atoms<T, kTiles * 8>::Ss;
  [&]<size_t... i>(std::index_sequence<i...>) {
    Atom::fma(a, b, acc[0][i / 4][i % 4]..., fresh ? detail::ScaleOut::Zero : detail::ScaleOut::One);
  }(std::make_index_sequence<kTiles * 4>());
}

// acc = or += a^T b: rows of a and b are 16 of what is summed over.
template <class T, int kTiles>
__device__ __forceinline__ void multiply_tt(float (&acc)[1][kTiles][4], uint64_t a, uint64_t b, bool fresh) {
  using Atom = typename detail::Atoms<T, kTiles * 8>::Tt;
  [&]<size_t... i>(std::index_sequence<i...>) {
    Atom::fma(a, b, acc[0][i / 4][i % 4]..., fresh ? detail::ScaleOut::Zero : detail::ScaleOut::One);
  }(std::make_index_sequence<kTiles * 4>());
}

// acc += a b, a in registers (as mma.cuh's), rows of b are 16 of what is summed over.
template <class T, int kTiles>
__device__ __forceinline__ void multiply_rs(float (&acc)[1][kTiles][4], const uint32_t (&a)[4], uint64_t b) {
  using Atom = typename detail::Atoms<T, kTiles * 8>::Rs;
  [&]<size_t... i>(std::index_sequence<i...>) {
    Atom::fma(a[0], a[1], a[2], a[3], b, acc[0][i / 4][i % 4]..., detail::ScaleOut::One);
  }(std::make_index_sequence<kTiles * 4>());
}

}  // namespace xformers::cuda::wgmma
