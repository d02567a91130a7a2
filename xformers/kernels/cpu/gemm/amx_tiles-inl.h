// AMX tiles of the decode kernel: their shapes, and instructions on tiles chosen by a template argument.
#pragma once

#include <immintrin.h>

#include "xformers/kernels/cpu/base/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// Shapes of tiles 0 ... 5 and of 6, 7: for scores, [16 x kRows] of S^T and Q^T, [16 x 32] of K; for values, [kRows x
// 16] of O and P, [16 x 32] of V.
template <int kRows>
HWY_INLINE void configure_tiles(bool values) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_per_row[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int tile = 0; tile < 8; ++tile) {
    const bool of_keys = tile >= 6;
    config.bytes_per_row[tile] = of_keys || values ? 64 : 4 * kRows;
    config.rows[tile] = of_keys || !values ? 16 : kRows;
  }
  _tile_loadconfig(&config);
}

// The intrinsics want tile numbers as literals.
template <int kTile>
HWY_INLINE void zero_tile() {
  if constexpr (kTile == 0) _tile_zero(0);
  if constexpr (kTile == 1) _tile_zero(1);
  if constexpr (kTile == 2) _tile_zero(2);
  if constexpr (kTile == 3) _tile_zero(3);
}
template <int kTile>
HWY_INLINE void add_product() {  // of tiles 6 and 4
  if constexpr (kTile == 0) _tile_dpbf16ps(0, 6, 4);
  if constexpr (kTile == 1) _tile_dpbf16ps(1, 6, 4);
  if constexpr (kTile == 2) _tile_dpbf16ps(2, 6, 4);
  if constexpr (kTile == 3) _tile_dpbf16ps(3, 6, 4);
}
template <int kTile>
HWY_INLINE void store_tile(float* to, ptrdiff_t stride) {
  if constexpr (kTile == 0) _tile_stored(0, to, stride);
  if constexpr (kTile == 1) _tile_stored(1, to, stride);
  if constexpr (kTile == 2) _tile_stored(2, to, stride);
  if constexpr (kTile == 3) _tile_stored(3, to, stride);
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
