// bf16 products on vdpbf16ps: each of 16 lanes adds the product of a pair of Left, broadcast, and a pair of Right.
#pragma once

#include "xformers/kernels/cpu/gemm/gemm_bf16x-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

struct Dpbf16Engine {
  static HWY_INLINE void begin() {}
  static HWY_INLINE void end() {}

  template <int kPlanes, int kRows, int kVecs>
  static HWY_INLINE void tile(float* c, ptrdiff_t c_stride, const PlaneLeft& left, const PlaneRight& right,
                              ptrdiff_t row, ptrdiff_t col, ptrdiff_t depth, bool accumulate) {
    __m512 acc[kRows][kVecs];
    float* const target = c + row * c_stride + col;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v)
        acc[r][v] = accumulate ? _mm512_loadu_ps(target + r * c_stride + v * 16) : _mm512_setzero_ps();
    }
    for (const PlanePair& pair : PlanePairs<kPlanes>::kList) {
      const Bf16Bits* a = left.data + pair.left * left.plane + row * left.stride;
      const Pair* b = right.data + pair.right * right.plane + col;
      for (ptrdiff_t k = 0; k < depth; k += 2, b += right.stride) {
        __m512i pairs[kVecs];
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) pairs[v] = _mm512_loadu_si512(b + v * 16);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          Pair one;
          std::memcpy(&one, a + r * left.stride + k, sizeof one);
          const __m512bh repeated = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(one)));
#pragma GCC unroll 4
          for (int v = 0; v < kVecs; ++v) {
            acc[r][v] = _mm512_dpbf16_ps(acc[r][v], repeated, reinterpret_cast<__m512bh>(pairs[v]));
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) _mm512_storeu_ps(target + r * c_stride + v * 16, acc[r][v]);
    }
  }

  template <int kPlanes, int kVecs>
  static HWY_NOINLINE void columns(float* c, ptrdiff_t c_stride, const PlaneLeft& left, const PlaneRight& right,
                                   ptrdiff_t rows, ptrdiff_t col, ptrdiff_t depth, bool accumulate) {
    ptrdiff_t row = 0;
    for (; row + 6 <= rows; row += 6) tile<kPlanes, 6, kVecs>(c, c_stride, left, right, row, col, depth, accumulate);
    for (; row + 2 <= rows; row += 2) tile<kPlanes, 2, kVecs>(c, c_stride, left, right, row, col, depth, accumulate);
    if (row < rows) tile<kPlanes, 1, kVecs>(c, c_stride, left, right, row, col, depth, accumulate);
  }

  template <int kPlanes>
  static HWY_INLINE void multiply(float* c, ptrdiff_t c_stride, const PlaneLeft& left, const PlaneRight& right,
                                  ptrdiff_t rows, ptrdiff_t cols, ptrdiff_t depth, bool accumulate) {
    for (ptrdiff_t col = 0; col < cols;) {
      const ptrdiff_t vecs = min_of((cols - col) / 16, 4);
      if (vecs == 4) columns<kPlanes, 4>(c, c_stride, left, right, rows, col, depth, accumulate);
      if (vecs == 3) columns<kPlanes, 3>(c, c_stride, left, right, rows, col, depth, accumulate);
      if (vecs == 2) columns<kPlanes, 2>(c, c_stride, left, right, rows, col, depth, accumulate);
      if (vecs == 1) columns<kPlanes, 1>(c, c_stride, left, right, rows, col, depth, accumulate);
      col += vecs * 16;
    }
  }
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
