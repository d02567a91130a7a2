// Small matrix products on bf16 multipliers (AMX tiles or vdpbf16ps): C[rows, cols] (+)= Left * Right, C in fp32.
//
// An element is split into kPlanes bf16 numbers that add up to it exactly: 1 for bf16, 2 for fp16 (11 significant bits
// = 8 + 3), 3 for fp32 (24 = 8 + 8 + 8). The product of two elements is then the sum of the products of their planes,
// of which those below the last place are left out:
//   2 planes: hh + hl + lh                  relative error 2^-17 of an element
//   3 planes: hh + hm + mh + mm + hl + lh   relative error 2^-24
// (Henry, Tang & Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision
// computations", ARITH 2019.) Non-finite elements give NaN where the plain product might give Inf.
//
//   Left   [planes][rows, to 16][depth, to 32]           bf16, row-major
//   Right  [planes][depth / 2, to 16][cols, to 16][2]    pairs along the depth, as the dot-product instructions read
//   them
#pragma once

#include <immintrin.h>

#include "xformers/kernels/cpu/base/scratch.h"
#include "xformers/kernels/cpu/base/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

using Bf16Bits = uint16_t;  // storage of a plane
using Pair = uint32_t;      // two bf16 neighbours along the depth, the earlier one in the low half

struct PlaneLeft {
  const Bf16Bits* data;
  ptrdiff_t stride, plane;  // elements between rows, planes
  HWY_INLINE PlaneLeft at_row(ptrdiff_t row) const { return {data + row * stride, stride, plane}; }
  HWY_INLINE PlaneLeft at_depth(ptrdiff_t depth) const { return {data + depth, stride, plane}; }
};
struct PlaneRight {
  const Pair* data;
  ptrdiff_t stride, plane;  // pairs between rows of pairs, planes
  HWY_INLINE PlaneRight at_depth(ptrdiff_t depth) const { return {data + depth / 2 * stride, stride, plane}; }
};

template <class T>
struct NumPlanes;
template <>
struct NumPlanes<BFloat16> {
  static constexpr int value = 1;
};
template <>
struct NumPlanes<Float16> {
  static constexpr int value = 2;
};
template <>
struct NumPlanes<float> {
  static constexpr int value = 3;
};

HWY_INLINE __m512 load_16(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
HWY_INLINE __m512 load_16(const Float16* p, __mmask16 mask) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
}
HWY_INLINE __m512 load_16(const BFloat16* p, __mmask16 mask) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
}
HWY_INLINE __mmask16 first_16(ptrdiff_t count) {
  return count >= 16 ? __mmask16{0xffff} : count <= 0 ? __mmask16{0} : static_cast<__mmask16>((1u << count) - 1);
}
HWY_INLINE __m512 float_of(__m256i bf16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16));
}

// The planes of 32 numbers, one after the other: emit(plane, [bf16(low 16), bf16(high 16)]).
template <int kPlanes, class Emit>
HWY_INLINE void split_planes(__m512 low, __m512 high, const Emit& emit) {
#pragma GCC unroll 3
  for (int plane = 0; plane < kPlanes; ++plane) {
    const __m512i bits = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    emit(plane, bits);
    if (plane + 1 < kPlanes) {
      low = _mm512_sub_ps(low, float_of(_mm512_castsi512_si256(bits)));
      high = _mm512_sub_ps(high, float_of(_mm512_extracti64x4_epi64(bits, 1)));
    }
  }
}

// [a0 ... a15, b0 ... b15] -> [a0, b0, a1, b1, ...]
HWY_INLINE __m512i interleave_halves(__m512i bits) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, bits);
}

// For vpermt2w: [a_i, b_i, a_(i+1), b_(i+1), ...] from i = begin.
HWY_INLINE __m512i zip_order(int begin) {
  const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  return _mm512_add_epi16(order, _mm512_set1_epi16(static_cast<short>(begin)));
}

// Engine::multiply<kPlanes>(c, c_stride, left, right, rows, cols, depth, accumulate), begin(), end().
template <class T, class Engine>
struct Bf16Gemm {
  using Element = T;
  using Compute = float;
  using Left = PlaneLeft;
  using Right = PlaneRight;
  static constexpr int kPlanes = NumPlanes<T>::value;
  static constexpr int kExp2Degree = Exp2Degree<T>::value;
  static constexpr ptrdiff_t kDepthAlign = 32;
  static constexpr bool kProbsInPlace = false;

  static HWY_INLINE void begin() { Engine::begin(); }
  static HWY_INLINE void end() { Engine::end(); }

  static HWY_INLINE size_t left_size(ptrdiff_t rows, ptrdiff_t depth) {
    return kPlanes * sizeof(Bf16Bits) * round_up(rows, 16) * round_up(depth, 32) + staging_size(rows, depth);
  }
  static HWY_INLINE size_t right_size(ptrdiff_t depth, ptrdiff_t cols) {
    return kPlanes * sizeof(Bf16Bits) * round_up(depth, 32) * round_up(cols, 16) + staging_size(cols, depth);
  }
  // Room for one operand's planes before its transposition.
  static HWY_INLINE size_t staging_size(ptrdiff_t rows, ptrdiff_t cols) {
    return kPlanes * sizeof(Bf16Bits) * round_up(rows, 32) * round_up(cols, 32);
  }

  static HWY_INLINE Left pack_left(void* to, const T* from, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t depth) {
    auto* data = static_cast<Bf16Bits*>(to);
    const ptrdiff_t padded = round_up(depth, 32), plane_size = round_up(rows, 16) * padded;
    for (ptrdiff_t r = 0; r < rows; ++r) {
      const T* row = from + r * stride;
      Bf16Bits* target = data + r * padded;
      if constexpr (kPlanes == 1) {
        for (ptrdiff_t k = 0; k < depth; k += 32) {
          const __mmask32 mask = depth - k >= 32 ? ~__mmask32{0} : (__mmask32{1} << (depth - k)) - 1;
          _mm512_storeu_si512(target + k, _mm512_maskz_loadu_epi16(mask, row + k));
        }
      } else {
        for (ptrdiff_t k = 0; k < depth; k += 32) {
          const __m512 low = load_16(row + k, first_16(depth - k)),
                       high = load_16(row + k + 16, first_16(depth - k - 16));
          split_planes<kPlanes>(
              low, high, [&](int plane, __m512i bits) { _mm512_storeu_si512(target + plane * plane_size + k, bits); });
        }
      }
    }
    return {data, padded, plane_size};
  }

  static HWY_INLINE Right pack_right(void* to, const T* from, ptrdiff_t stride, ptrdiff_t depth, ptrdiff_t cols) {
    auto* data = static_cast<Pair*>(to);
    const ptrdiff_t padded = round_up(cols, 16), plane_size = round_up(depth, 32) / 2 * padded;
    for (ptrdiff_t k = 0; k < round_up(depth, 32); k += 2) {
      const T* row = from + k * stride;
      Pair* target = data + k / 2 * padded;
      const bool has_first = k < depth, has_second = k + 1 < depth;
      ptrdiff_t c = 0;
      if constexpr (kPlanes == 1) {
        for (; has_second && c + 32 <= cols; c += 32) {
          const __m512i a = _mm512_loadu_si512(row + c), b = _mm512_loadu_si512(row + stride + c);
          _mm512_storeu_si512(target + c, _mm512_permutex2var_epi16(a, zip_order(0), b));
          _mm512_storeu_si512(target + c + 16, _mm512_permutex2var_epi16(a, zip_order(16), b));
        }
      }
      for (; c < padded; c += 16) {
        const __mmask16 mask = first_16(cols - c);
        const __mmask16 first = has_first ? mask : __mmask16{0}, second = has_second ? mask : __mmask16{0};
        if constexpr (kPlanes == 1) {
          const __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first, row + c));
          const __m512i b = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, row + stride + c));
          _mm512_storeu_si512(target + c, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
        } else {
          split_planes<kPlanes>(load_16(row + c, first), load_16(row + stride + c, second),
                                [&](int plane, __m512i bits) {
                                  _mm512_storeu_si512(target + plane * plane_size + c, interleave_halves(bits));
                                });
        }
      }
    }
    return {data, padded, plane_size};
  }

  // Pairs along the depth are what both formats have in common: transposing 32-bit pairs turns one into the other.
  static HWY_INLINE Left pack_left_transposed(void* to, const T* from, ptrdiff_t stride, ptrdiff_t depth,
                                              ptrdiff_t rows) {
    auto* data = static_cast<Bf16Bits*>(to);
    const ptrdiff_t padded = round_up(depth, 32), plane_size = round_up(rows, 16) * padded;
    const Right pairs = pack_right(data + kPlanes * plane_size, from, stride, depth, rows);
    for (int plane = 0; plane < kPlanes; ++plane) {
      transpose(pairs.data + plane * pairs.plane, pairs.stride, reinterpret_cast<Pair*>(data + plane * plane_size),
                padded / 2, padded / 2, round_up(rows, 16));
    }
    return {data, padded, plane_size};
  }
  // cols is a multiple of 16.
  static HWY_INLINE Right pack_right_transposed(void* to, const T* from, ptrdiff_t stride, ptrdiff_t cols,
                                                ptrdiff_t depth) {
    auto* data = static_cast<Pair*>(to);
    const ptrdiff_t pairs = round_up(depth, 32) / 2, plane_size = pairs * cols;
    const Left rows = pack_left(data + kPlanes * plane_size, from, stride, cols, depth);
    for (int plane = 0; plane < kPlanes; ++plane) {
      transpose(reinterpret_cast<const Pair*>(rows.data + plane * rows.plane), rows.stride / 2,
                data + plane * plane_size, cols, cols, pairs);
    }
    return {data, cols, plane_size};
  }

  // Probabilities, [rows, cols] fp32 in registers: as Left (their rows) and as Right (pairs of their rows). rows_max
  // and cols fix the layout of the buffers.
  static HWY_INLINE size_t probs_size(ptrdiff_t rows_max, ptrdiff_t cols) {
    return kPlanes * sizeof(Bf16Bits) * round_up(rows_max, 32) * cols;
  }
  static HWY_INLINE Left probs_left(void* to, const float*, ptrdiff_t rows_max, ptrdiff_t cols) {
    return {static_cast<Bf16Bits*>(to), cols, round_up(rows_max, 32) * cols};
  }
  static HWY_INLINE Right probs_right(void* to, const float*, ptrdiff_t rows_max, ptrdiff_t cols) {
    return {static_cast<Pair*>(to), cols, round_up(rows_max, 32) / 2 * cols};
  }
  // Rows `row` (even) and row + 1, 16 columns from `col`.
  template <bool kLeft, bool kRight>
  static HWY_INLINE void store_probs(const Left& left, const Right& right, float*, ptrdiff_t, ptrdiff_t row,
                                     ptrdiff_t col, Vec<float> first, Vec<float> second) {
    split_planes<kPlanes>(first.raw, second.raw, [&](int plane, __m512i bits) {
      if constexpr (kLeft) {
        auto* target = const_cast<Bf16Bits*>(left.data) + plane * left.plane + row * left.stride + col;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), _mm512_castsi512_si256(bits));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + left.stride), _mm512_extracti64x4_epi64(bits, 1));
      }
      if constexpr (kRight) {
        auto* target = const_cast<Pair*>(right.data) + plane * right.plane + row / 2 * right.stride + col;
        _mm512_storeu_si512(target, interleave_halves(bits));
      }
    });
  }

  static HWY_INLINE void multiply(float* c, ptrdiff_t c_stride, const Left& left, const Right& right, ptrdiff_t rows,
                                  ptrdiff_t cols, ptrdiff_t depth, bool accumulate) {
    Engine::template multiply<kPlanes>(c, c_stride, left, right, rows, cols, round_up(depth, 32), accumulate);
  }
};

// Products of planes that count, the smallest first: kPlanePairs[kPlanes - 1], {left plane, right plane}.
struct PlanePair {
  int left, right;
};
template <int kPlanes>
struct PlanePairs;
template <>
struct PlanePairs<1> {
  static constexpr PlanePair kList[] = {{0, 0}};
};
template <>
struct PlanePairs<2> {
  static constexpr PlanePair kList[] = {{1, 0}, {0, 1}, {0, 0}};
};
template <>
struct PlanePairs<3> {
  static constexpr PlanePair kList[] = {{2, 0}, {0, 2}, {1, 1}, {1, 0}, {0, 1}, {0, 0}};
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
