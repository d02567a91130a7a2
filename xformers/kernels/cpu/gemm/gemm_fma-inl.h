// Small matrix products on fused multiply-add: C[rows, cols] (+)= Left[rows, depth] * Right[depth, cols].
//
// Left is read element by element (each one broadcast to a vector), so it may have any strides, and a transposed
// operand is the same memory with its strides swapped. Right and C are row-major, their columns a multiple of the
// vector. Operands are copied to compact memory first, which converts 16-bit elements and keeps rows a power of two
// apart from falling into the same cache sets.
//
// A Gemm (this one, or gemm_bf16x-inl.h) is what the attention algorithms are written over: it says how operands lie
// and multiplies them.
#pragma once

#include "xformers/kernels/cpu/base/scratch.h"
#include "xformers/kernels/cpu/base/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// kRows x kVecs accumulators stay in registers over the whole depth.
template <int kRows, int kVecs, class C>
HWY_INLINE void fma_tile(C* HWY_RESTRICT c, ptrdiff_t c_stride, const C* HWY_RESTRICT left, ptrdiff_t row_stride,
                         ptrdiff_t depth_stride, const C* HWY_RESTRICT right, ptrdiff_t right_stride, ptrdiff_t depth,
                         bool accumulate) {
  const Tag<C> d;
  constexpr ptrdiff_t kLanes = lanes<C>();
  Vec<C> acc[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) acc[r][v] = accumulate ? hn::LoadU(d, c + r * c_stride + v * kLanes) : hn::Zero(d);
  }
  for (ptrdiff_t k = 0; k < depth; ++k) {
    Vec<C> b[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) b[v] = hn::LoadU(d, right + k * right_stride + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec<C> a = hn::Set(d, left[r * row_stride + k * depth_stride]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) acc[r][v] = hn::MulAdd(a, b[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) hn::StoreU(acc[r][v], d, c + r * c_stride + v * kLanes);
  }
}

template <int kVecs, class C>
HWY_NOINLINE void fma_columns(C* c, ptrdiff_t c_stride, const C* left, ptrdiff_t row_stride, ptrdiff_t depth_stride,
                              const C* right, ptrdiff_t right_stride, ptrdiff_t rows, ptrdiff_t depth,
                              bool accumulate) {
  ptrdiff_t r = 0;
  for (; r + 6 <= rows; r += 6) {
    fma_tile<6, kVecs>(c + r * c_stride, c_stride, left + r * row_stride, row_stride, depth_stride, right, right_stride,
                       depth, accumulate);
  }
  C* const last_c = c + r * c_stride;
  const C* const last = left + r * row_stride;
  switch (rows - r) {
    case 1:
      return fma_tile<1, kVecs>(last_c, c_stride, last, row_stride, depth_stride, right, right_stride, depth,
                                accumulate);
    case 2:
      return fma_tile<2, kVecs>(last_c, c_stride, last, row_stride, depth_stride, right, right_stride, depth,
                                accumulate);
    case 3:
      return fma_tile<3, kVecs>(last_c, c_stride, last, row_stride, depth_stride, right, right_stride, depth,
                                accumulate);
    case 4:
      return fma_tile<4, kVecs>(last_c, c_stride, last, row_stride, depth_stride, right, right_stride, depth,
                                accumulate);
    case 5:
      return fma_tile<5, kVecs>(last_c, c_stride, last, row_stride, depth_stride, right, right_stride, depth,
                                accumulate);
  }
}

template <class T>
struct FmaGemm {
  using Element = T;                            // of q, k, v in memory
  using Compute = typename ComputeOf<T>::type;  // of scores and accumulators
  static constexpr int kExp2Degree = Exp2Degree<T>::value;
  static constexpr ptrdiff_t kLanes = lanes<Compute>();
  static constexpr ptrdiff_t kDepthAlign = 1;  // at_depth() takes multiples of this; rows of probs up to it are zero
  static constexpr bool kProbsInPlace = true;  // probabilities overwrite the scores: both are Compute, row-major
  static constexpr int kMaxVecs = XFORMERS_AVX512 ? 4 : 2;

  struct Left {
    const Compute* data;
    ptrdiff_t row_stride, depth_stride;
    HWY_INLINE Left at_row(ptrdiff_t row) const { return {data + row * row_stride, row_stride, depth_stride}; }
    HWY_INLINE Left at_depth(ptrdiff_t depth) const { return {data + depth * depth_stride, row_stride, depth_stride}; }
  };
  struct Right {
    const Compute* data;
    ptrdiff_t stride;
    HWY_INLINE Right at_depth(ptrdiff_t depth) const { return {data + depth * stride, stride}; }
  };

  static HWY_INLINE void begin() {}  // around all work of one worker
  static HWY_INLINE void end() {}

  // Bytes that the operands of these sizes take.
  static HWY_INLINE size_t left_size(ptrdiff_t rows, ptrdiff_t depth) { return sizeof(Compute) * (rows * depth + 16); }
  static HWY_INLINE size_t right_size(ptrdiff_t depth, ptrdiff_t cols) {
    return sizeof(Compute) * round_up(depth, 16) * round_up(cols, 16) + staging_size(cols, depth);
  }
  static HWY_INLINE size_t staging_size(ptrdiff_t rows, ptrdiff_t cols) {
    return sizeof(Compute) * round_up(rows, 16) * round_up(cols, 16);
  }

  // Left from [rows, depth].
  static HWY_INLINE Left pack_left(void* to, const T* from, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t depth) {
    auto* data = static_cast<Compute*>(to);
    for (ptrdiff_t r = 0; r < rows; ++r) convert_row(from + r * stride, data + r * depth, depth);
    return {data, depth, 1};
  }
  // Left from its transpose, [depth, rows].
  static HWY_INLINE Left pack_left_transposed(void* to, const T* from, ptrdiff_t stride, ptrdiff_t depth,
                                              ptrdiff_t rows) {
    return {pack_left(to, from, stride, depth, rows).data, 1, rows};
  }
  // Right from [depth, cols]; columns up to the next vector are zero.
  static HWY_INLINE Right pack_right(void* to, const T* from, ptrdiff_t stride, ptrdiff_t depth, ptrdiff_t cols) {
    auto* data = static_cast<Compute*>(to);
    const ptrdiff_t padded = round_up(cols, kLanes);
    for (ptrdiff_t k = 0; k < depth; ++k) {
      convert_row(from + k * stride, data + k * padded, cols);
      zero_row(data + k * padded + cols, padded - cols);
    }
    return {data, padded};
  }
  // Right from its transpose, [cols, depth]; cols is a multiple of 16.
  static HWY_INLINE Right pack_right_transposed(void* to, const T* from, ptrdiff_t stride, ptrdiff_t cols,
                                                ptrdiff_t depth) {
    auto* data = static_cast<Compute*>(to);
    Compute* const staging = data + round_up(depth, 16) * round_up(cols, 16);
    const ptrdiff_t padded = round_up(depth, 16);
    for (ptrdiff_t c = 0; c < cols; ++c) convert_row(from + c * stride, staging + c * padded, depth);
    transpose(staging, padded, data, cols, cols, depth);
    return {data, cols};
  }

  // Probabilities, [rows, cols] in registers, as Left (their rows) and as Right: both are the scores' own memory.
  static HWY_INLINE size_t probs_size(ptrdiff_t, ptrdiff_t) { return 0; }
  static HWY_INLINE Left probs_left(void*, const Compute* scores, ptrdiff_t, ptrdiff_t cols) {
    return {scores, cols, 1};
  }
  static HWY_INLINE Right probs_right(void*, const Compute* scores, ptrdiff_t, ptrdiff_t cols) {
    return {scores, cols};
  }
  // Rows `row` and row + 1, one vector from column `col`. The scores have room for an even number of rows.
  template <bool kLeft, bool kRight>
  static HWY_INLINE void store_probs(const Left&, const Right&, Compute* scores, ptrdiff_t stride, ptrdiff_t row,
                                     ptrdiff_t col, Vec<Compute> first, Vec<Compute> second) {
    const Tag<Compute> d;
    hn::StoreU(first, d, scores + row * stride + col);
    hn::StoreU(second, d, scores + (row + 1) * stride + col);
  }

  // C rows are c_stride apart; cols is a multiple of the vector.
  static HWY_INLINE void multiply(Compute* c, ptrdiff_t c_stride, Left left, Right right, ptrdiff_t rows,
                                  ptrdiff_t cols, ptrdiff_t depth, bool accumulate) {
    for (ptrdiff_t col = 0; col < cols;) {
      const ptrdiff_t vecs = min_of((cols - col) / kLanes, kMaxVecs);
      const auto run = [&](auto columns) {
        columns(c + col, c_stride, left.data, left.row_stride, left.depth_stride, right.data + col, right.stride, rows,
                depth, accumulate);
      };
      if constexpr (kMaxVecs >= 4) {
        if (vecs == 4) run(fma_columns<4, Compute>);
        if (vecs == 3) run(fma_columns<3, Compute>);
      }
      if (vecs == 2) run(fma_columns<2, Compute>);
      if (vecs == 1) run(fma_columns<1, Compute>);
      col += vecs * kLanes;
    }
  }
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
