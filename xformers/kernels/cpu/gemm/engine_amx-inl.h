// bf16 products on AMX: tiles of 16 rows x 64 bytes, C += A * B with A [16, 32] bf16, B [16 pairs, 16], C [16, 16]
// fp32.
#pragma once

#include "xformers/kernels/cpu/gemm/gemm_bf16x-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

struct AmxEngine {
  // Tile state belongs to a thread; outside these two it is released, as other users of AMX expect.
  static HWY_INLINE void begin() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes_per_row[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < 8; ++tile) {
      config.bytes_per_row[tile] = 64;
      config.rows[tile] = 16;
    }
    _tile_loadconfig(&config);
  }
  static HWY_INLINE void end() { _tile_release(); }

  // Tiles 0-3 accumulate [row tile, col tile], 4-5 hold Left, 6-7 Right.
  template <int kPlanes, int kRowTiles, int kColTiles>
  static HWY_INLINE void block(float* c, ptrdiff_t c_stride, const PlaneLeft& left, const PlaneRight& right,
                               ptrdiff_t row, ptrdiff_t col, ptrdiff_t depth, bool accumulate) {
    const ptrdiff_t c_bytes = c_stride * sizeof(float), left_bytes = left.stride * sizeof(Bf16Bits);
    const ptrdiff_t right_bytes = right.stride * sizeof(Pair);
    float* const c0 = c + row * c_stride + col;
    float* const c1 = c0 + 16 * c_stride;
    if (accumulate) {
      _tile_loadd(0, c0, c_bytes);
      if constexpr (kColTiles > 1) _tile_loadd(1, c0 + 16, c_bytes);
      if constexpr (kRowTiles > 1) _tile_loadd(2, c1, c_bytes);
      if constexpr (kRowTiles > 1 && kColTiles > 1) _tile_loadd(3, c1 + 16, c_bytes);
    } else {
      _tile_zero(0);
      if constexpr (kColTiles > 1) _tile_zero(1);
      if constexpr (kRowTiles > 1) _tile_zero(2);
      if constexpr (kRowTiles > 1 && kColTiles > 1) _tile_zero(3);
    }
    for (const PlanePair& pair : PlanePairs<kPlanes>::kList) {
      const Bf16Bits* a = left.data + pair.left * left.plane + row * left.stride;
      const Pair* b = right.data + pair.right * right.plane + col;
      for (ptrdiff_t k = 0; k < depth; k += 32) {
        _tile_loadd(4, a + k, left_bytes);
        if constexpr (kRowTiles > 1) _tile_loadd(5, a + 16 * left.stride + k, left_bytes);
        _tile_loadd(6, b, right_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (kRowTiles > 1) _tile_dpbf16ps(2, 5, 6);
        if constexpr (kColTiles > 1) {
          _tile_loadd(7, b + 16, right_bytes);
          _tile_dpbf16ps(1, 4, 7);
          if constexpr (kRowTiles > 1) _tile_dpbf16ps(3, 5, 7);
        }
        b += 16 * right.stride;
      }
    }
    _tile_stored(0, c0, c_bytes);
    if constexpr (kColTiles > 1) _tile_stored(1, c0 + 16, c_bytes);
    if constexpr (kRowTiles > 1) _tile_stored(2, c1, c_bytes);
    if constexpr (kRowTiles > 1 && kColTiles > 1) _tile_stored(3, c1 + 16, c_bytes);
  }

  // Rows are rounded up to 16 (C and Left have room), cols is a multiple of 16, depth of 32.
  template <int kPlanes>
  static HWY_NOINLINE void multiply(float* c, ptrdiff_t c_stride, const PlaneLeft& left, const PlaneRight& right,
                                    ptrdiff_t rows, ptrdiff_t cols, ptrdiff_t depth, bool accumulate) {
    for (ptrdiff_t row = 0; row < rows; row += 32) {
      const bool two_rows = rows - row > 16;
      for (ptrdiff_t col = 0; col < cols; col += 32) {
        const bool two_cols = cols - col > 16;
        if (two_rows && two_cols) {
          block<kPlanes, 2, 2>(c, c_stride, left, right, row, col, depth, accumulate);
        } else if (two_rows) {
          block<kPlanes, 2, 1>(c, c_stride, left, right, row, col, depth, accumulate);
        } else if (two_cols) {
          block<kPlanes, 1, 2>(c, c_stride, left, right, row, col, depth, accumulate);
        } else {
          block<kPlanes, 1, 1>(c, c_stride, left, right, row, col, depth, accumulate);
        }
      }
    }
  }
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
