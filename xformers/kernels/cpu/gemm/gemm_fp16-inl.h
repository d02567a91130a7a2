// Small matrix products of fp16 elements on fp16 multiply-adds (AVX512-FP16, 32 lanes a vector), summed in fp32:
// C[rows, cols] (+)= Left[rows, depth] * Right[depth, cols], C in fp32.
//
// A chain of 8 products is added up in fp16, 4 chains are added in fp16, and their sum goes to C in fp32. A widening
// costs four instructions, so that longer chains are faster, but their rounding shows. Worst error of out, dq, dk and
// dv over 200 random cases, in units of what the tests allow; the fp32 kernel's is 0.58:
//
//   products with probabilities and their gradients      all products, scores too
//   chains of   8 x 2   8 x 4   16 x 1   16 x 2   32      8 x 1   4 x 2   16 x 2
//   error       0.78    0.78    1.01     1.02    1.39     3.5     3.2     7.4
//
// Scores are exponents, which makes them the tender part: S = K Q^T stays fp32 (gemm_fma-inl.h), and so does dP = V
// dO^T, which is packed like it. Products with probabilities or their gradients, one of forward's two and three of
// backward's five, are fp16.
//
// Each fp16 operand is scaled by a power of two to magnitudes below 2^5, so that no sum of 32 products overflows and
// nothing of account underflows; the sums are scaled back as they are widened.
//
//   Left   [rows, depth] of pairs; a transposed operand is the same memory with its strides swapped
//   Right  [depth, cols to 32]
#pragma once

#include <immintrin.h>

#include "xformers/kernels/cpu/gemm/gemm_fma-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

using HalfBits = uint16_t;  // an fp16 number
using HalfPair = uint32_t;  // the same number twice: to broadcast 32 bits costs no shuffle, 16 do

inline constexpr ptrdiff_t kChain = 8;  // products that are added up in fp16, one after the other
inline constexpr int kChains = 4;       // chains whose sums are added in fp16
inline constexpr int kTopExponent = 5;  // narrow operands lie below 2^this
inline constexpr int kInfinityBits = 0x7f800000;

// ---- powers of two that bring operands into range ----
// The power of two that brings the largest finite magnitude, given as the bits of a float, to [2^(top - 1), 2^top).
HWY_INLINE int exponent_to_top(int largest, int lowest, int highest) {
  if (largest == 0) return 0;
  const int exponent = kTopExponent - 1 - ((largest >> 23) - 127);
  return exponent < lowest ? lowest : exponent > highest ? highest : exponent;
}
HWY_INLINE float power_of_two(int exponent) { return float_from_bits(static_cast<uint32_t>(exponent + 127) << 23); }

// visit(offset, mask) for each vector of `kWidth` numbers among `count`: the last one may be short.
template <ptrdiff_t kWidth, class Visit>
HWY_INLINE void for_each_vector(ptrdiff_t count, const Visit& visit) {
  ptrdiff_t i = 0;
  for (; i + kWidth <= count; i += kWidth) visit(i, ~uint32_t{0});
  if (i < count) visit(i, (uint32_t{1} << (count - i)) - 1);
}

// Bits of the largest finite magnitude of [rows, cols], as a float's.
template <bool kSkipInfinite>
HWY_INLINE int largest_of(const float* from, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t cols) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), infinity = _mm512_set1_epi32(kInfinityBits);
  __m512i largest = _mm512_setzero_si512();
  for (ptrdiff_t r = 0; r < rows; ++r) {
    for_each_vector<16>(cols, [&](ptrdiff_t c, uint32_t mask) HWY_ATTR {
      __m512i bits =
          _mm512_and_si512(_mm512_maskz_loadu_epi32(static_cast<__mmask16>(mask), from + r * stride + c), magnitude);
      if (kSkipInfinite) bits = _mm512_maskz_mov_epi32(_mm512_cmplt_epi32_mask(bits, infinity), bits);
      largest = _mm512_max_epi32(largest, bits);
    });
  }
  return _mm512_reduce_max_epi32(largest);
}
HWY_INLINE int largest_finite(const float* from, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t cols) {
  const int largest = largest_of<false>(from, stride, rows, cols);
  return largest < kInfinityBits ? largest : largest_of<true>(from, stride, rows, cols);
}
HWY_INLINE int largest_finite(const Float16* from, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t cols) {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff), infinity = _mm512_set1_epi16(0x7c00);
  __m512i largest = _mm512_setzero_si512();
  for (ptrdiff_t r = 0; r < rows; ++r) {
    for_each_vector<32>(cols, [&](ptrdiff_t c, uint32_t mask) HWY_ATTR {
      const __m512i bits = _mm512_and_si512(_mm512_maskz_loadu_epi16(mask, from + r * stride + c), magnitude);
      largest = _mm512_mask_max_epu16(largest, _mm512_cmplt_epu16_mask(bits, infinity), largest, bits);
    });
  }
  const __m512i low = _mm512_and_si512(largest, _mm512_set1_epi32(0xffff)), high = _mm512_srli_epi32(largest, 16);
  const int bits = _mm512_reduce_max_epi32(_mm512_max_epi32(low, high));
  return static_cast<int>(bits_from_float(to_float(Float16{static_cast<HalfBits>(bits)})));
}

// A factor, and 1 / factor.
struct Scaling {
  float factor, unit;
};
HWY_INLINE Scaling scaling_of(const Float16* from, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t cols) {
  const int exponent = exponent_to_top(largest_finite(from, stride, rows, cols), -14, 15);  // the factor itself is fp16
  return {power_of_two(exponent), power_of_two(-exponent)};
}
HWY_INLINE Scaling scaling_of(const float* from, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t cols) {
  const int exponent = exponent_to_top(largest_finite(from, stride, rows, cols), -100, 100);
  return {power_of_two(exponent), power_of_two(-exponent)};
}

// 16 scaled numbers, as fp16.
HWY_INLINE __m256i narrow_16(const Float16* from, uint32_t mask, float factor) {
  const __m256h scaled =
      _mm256_mul_ph(_mm256_castsi256_ph(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), from)),
                    _mm256_set1_ph(static_cast<_Float16>(factor)));
  return _mm256_castph_si256(scaled);
}
HWY_INLINE __m256i narrow_16(const float* from, uint32_t mask, float factor) {
  return _mm512_cvtps_ph(
      _mm512_mul_ps(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from), _mm512_set1_ps(factor)),
      _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// ---- products ----
// kRows x kVecs accumulators of 32 columns; `cols`, a multiple of 16, are stored. C is always added to.
template <int kRows, int kVecs>
HWY_INLINE void half_tile(float* HWY_RESTRICT c, ptrdiff_t c_stride, const HalfPair* HWY_RESTRICT left,
                          ptrdiff_t row_stride, ptrdiff_t depth_stride, const HalfBits* HWY_RESTRICT right,
                          ptrdiff_t right_stride, ptrdiff_t cols, ptrdiff_t depth, float unit) {
  alignas(64) HalfBits sums[kRows][kVecs][32];
  const __m512 scale = _mm512_set1_ps(unit);
  for (ptrdiff_t k = 0; k < depth;) {
    for (int chain = 0; chain < kChains && k < depth; ++chain) {
      __m512h acc[kRows][kVecs];
      const auto step = [&](bool first) HWY_ATTR {
        __m512h b[kVecs];
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) b[v] = _mm512_loadu_ph(right + k * right_stride + 32 * v);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const __m512h a =
              _mm512_castsi512_ph(_mm512_set1_epi32(static_cast<int>(left[r * row_stride + k * depth_stride])));
#pragma GCC unroll 4
          for (int v = 0; v < kVecs; ++v)
            acc[r][v] = first ? _mm512_mul_ph(a, b[v]) : _mm512_fmadd_ph(a, b[v], acc[r][v]);
        }
      };
      const ptrdiff_t end = min_of(k + kChain, depth);
      step(true);
      for (++k; k < end; ++k) step(false);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          if (chain > 0) acc[r][v] = _mm512_add_ph(acc[r][v], _mm512_load_ph(sums[r][v]));
          _mm512_store_ph(sums[r][v], acc[r][v]);
        }
      }
      // Sums are widened from memory, which is cheaper than from the halves of a register: the compiler is to leave
      // that.
      asm volatile("" : : "r"(sums) : "memory");
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        float* const to = c + r * c_stride + 32 * v;
        const auto add = [&](int half) HWY_ATTR {
          const __m512 sum = _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(sums[r][v]) + half));
          _mm512_storeu_ps(to + 16 * half, _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(to + 16 * half)));
        };
        add(0);
        if (32 * v + 16 < cols) add(1);
      }
    }
  }
}

template <int kVecs>
HWY_NOINLINE void half_columns(float* c, ptrdiff_t c_stride, const HalfPair* left, ptrdiff_t row_stride,
                               ptrdiff_t depth_stride, const HalfBits* right, ptrdiff_t right_stride, ptrdiff_t rows,
                               ptrdiff_t cols, ptrdiff_t depth, float unit) {
  ptrdiff_t r = 0;
  const auto run = [&]<int kRows>() HWY_ATTR {
    for (; r + kRows <= rows; r += kRows) {
      half_tile<kRows, kVecs>(c + r * c_stride, c_stride, left + r * row_stride, row_stride, depth_stride, right,
                              right_stride, cols, depth, unit);
    }
  };
  run.template operator()<8>();
  run.template operator()<4>();
  run.template operator()<1>();
}

struct Fp16Gemm {
  using Element = Float16;
  using Compute = float;
  using Wide = FmaGemm<Float16>;
  static constexpr int kExp2Degree = Wide::kExp2Degree;
  static constexpr ptrdiff_t kDepthAlign = Wide::kDepthAlign;
  static constexpr bool kProbsInPlace = true;
  static constexpr ptrdiff_t kVecs = 2;

  // Operands of fp32 products, of fp16 products, and probabilities: fp32, to be made fp16 for the product.
  enum class Form { kWide, kNarrow, kProbs };
  struct Left {
    const void* data;  // float or HalfPair
    ptrdiff_t row_stride, depth_stride;
    Form form;
    float unit;            // what 1 stands for in a narrow operand
    void* room = nullptr;  // of probabilities: for their narrow form
    HWY_INLINE Left at_row(ptrdiff_t row) const { return at(row * row_stride); }
    HWY_INLINE Left at_depth(ptrdiff_t depth) const { return at(depth * depth_stride); }

   private:
    HWY_INLINE Left at(ptrdiff_t offset) const {
      Left moved = *this;
      moved.data = static_cast<const HalfPair*>(data) + offset;  // both are four bytes
      return moved;
    }
  };
  struct Right {
    const void* data;  // float or HalfBits
    ptrdiff_t stride;
    Form form;
    float unit;
    void* room = nullptr;
    HWY_INLINE Right at_depth(ptrdiff_t depth) const {  // of probabilities
      Right moved = *this;
      moved.data = static_cast<const float*>(data) + depth * stride;
      return moved;
    }
  };

  static HWY_INLINE void begin() {}
  static HWY_INLINE void end() {}

  static HWY_INLINE size_t left_size(ptrdiff_t rows, ptrdiff_t depth) { return Wide::left_size(rows, depth); }
  static HWY_INLINE size_t right_size(ptrdiff_t depth, ptrdiff_t cols) { return Wide::right_size(depth, cols); }

  static HWY_INLINE Left pack_left(void* to, const Float16* from, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t depth) {
    const Wide::Left wide = Wide::pack_left(to, from, stride, rows, depth);
    return {wide.data, wide.row_stride, wide.depth_stride, Form::kWide, 1};
  }
  static HWY_INLINE Right pack_right_transposed(void* to, const Float16* from, ptrdiff_t stride, ptrdiff_t cols,
                                                ptrdiff_t depth) {
    const Wide::Right wide = Wide::pack_right_transposed(to, from, stride, cols, depth);
    return {wide.data, wide.stride, Form::kWide, 1};
  }
  static HWY_INLINE Left pack_left_transposed(void* to, const Float16* from, ptrdiff_t stride, ptrdiff_t depth,
                                              ptrdiff_t rows) {
    Left left = narrow_left(to, from, stride, depth, rows);
    left.row_stride = 1;
    left.depth_stride = rows;
    return left;
  }
  static HWY_INLINE Right pack_right(void* to, const Float16* from, ptrdiff_t stride, ptrdiff_t depth, ptrdiff_t cols) {
    return narrow_right(to, from, stride, depth, cols);
  }

  static HWY_INLINE size_t probs_size(ptrdiff_t rows_max, ptrdiff_t cols) {
    return sizeof(HalfPair) * rows_max * round_up(cols, 16);
  }
  static HWY_INLINE Left probs_left(void* to, const float* scores, ptrdiff_t, ptrdiff_t cols) {
    return {scores, cols, 1, Form::kProbs, 1, to};
  }
  static HWY_INLINE Right probs_right(void* to, const float* scores, ptrdiff_t, ptrdiff_t cols) {
    return {scores, cols, Form::kProbs, 1, to};
  }
  template <bool kLeft, bool kRight>
  static HWY_INLINE void store_probs(const Left&, const Right&, float* scores, ptrdiff_t stride, ptrdiff_t row,
                                     ptrdiff_t col, Vec<float> first, Vec<float> second) {
    Wide::store_probs<kLeft, kRight>({}, {}, scores, stride, row, col, first, second);
  }

  static HWY_INLINE void multiply(float* c, ptrdiff_t c_stride, Left left, Right right, ptrdiff_t rows, ptrdiff_t cols,
                                  ptrdiff_t depth, bool accumulate) {
    if (left.form == Form::kWide) {
      return Wide::multiply(c, c_stride, {static_cast<const float*>(left.data), left.row_stride, left.depth_stride},
                            {static_cast<const float*>(right.data), right.stride}, rows, cols, depth, accumulate);
    }
    if (left.form == Form::kProbs) {
      left = narrow_left(left.room, static_cast<const float*>(left.data), left.row_stride, rows, depth);
    }
    if (right.form == Form::kProbs) {
      right = narrow_right(right.room, static_cast<const float*>(right.data), right.stride, depth, cols);
    }
    if (!accumulate) {
      for (ptrdiff_t r = 0; r < rows; ++r) zero_row(c + r * c_stride, cols);
    }
    const auto* const pairs = static_cast<const HalfPair*>(left.data);
    const auto* const bits = static_cast<const HalfBits*>(right.data);
    for (ptrdiff_t col = 0; col < cols; col += 32 * kVecs) {
      const ptrdiff_t here = min_of(cols - col, 32 * kVecs);
      const auto columns = here > 32 ? half_columns<2> : half_columns<1>;
      columns(c + col, c_stride, pairs, left.row_stride, left.depth_stride, bits + col, right.stride, rows, here, depth,
              left.unit * right.unit);
    }
  }

 private:
  template <class From>
  static HWY_INLINE Left narrow_left(void* to, const From* from, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t depth) {
    auto* const data = static_cast<HalfPair*>(to);
    const Scaling scaling = scaling_of(from, stride, rows, depth);
    const __m512i twice = _mm512_set_epi16(15, 15, 14, 14, 13, 13, 12, 12, 11, 11, 10, 10, 9, 9, 8, 8, 7, 7, 6, 6, 5, 5,
                                           4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    for (ptrdiff_t r = 0; r < rows; ++r) {
      for_each_vector<16>(depth, [&](ptrdiff_t k, uint32_t mask) HWY_ATTR {
        const __m512i once = _mm512_castsi256_si512(narrow_16(from + r * stride + k, mask, scaling.factor));
        _mm512_mask_storeu_epi32(data + r * depth + k, static_cast<__mmask16>(mask),
                                 _mm512_permutexvar_epi16(twice, once));
      });
    }
    return {data, depth, 1, Form::kNarrow, scaling.unit};
  }
  template <class From>
  static HWY_INLINE Right narrow_right(void* to, const From* from, ptrdiff_t stride, ptrdiff_t depth, ptrdiff_t cols) {
    auto* const data = static_cast<HalfBits*>(to);
    const Scaling scaling = scaling_of(from, stride, depth, cols);
    const ptrdiff_t padded = round_up(cols, 32);
    for (ptrdiff_t k = 0; k < depth; ++k) {
      HalfBits* const row = data + k * padded;
      for_each_vector<16>(cols, [&](ptrdiff_t c, uint32_t mask) HWY_ATTR {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + c),
                            narrow_16(from + k * stride + c, mask, scaling.factor));
      });
      if (round_up(cols, 16) < padded)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + padded - 16), _mm256_setzero_si256());
    }
    return {data, padded, Form::kNarrow, scaling.unit};
  }
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
