// What happens to a score between the product and the mask, in this order:
//
//   x = scale * (q . k)                        in natural units
//   x = softcap * tanh(x / softcap)            cap()
//   x = x - slope * | d(query) - key |         tilt(); d: the diagonal (alibi_shift in params/band.h)
//   x = x + bias                               scale_and_add(); a tensor of any strides
//
// The first one that there is takes the scale along. Phases over fragments: rows and columns count as the caller says,
// [queries, keys] in forward and [keys, queries] in backward, where distances are the same from the other side.
// Backward: dS before the cap is dS behind it times cap_slope(); dslope = -sum dS * distance (distances_times()).
#pragma once

#include "xformers/kernels/cuda/arch/fast_math.cuh"
#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/fragment.cuh"
#include "xformers/kernels/cuda/attention/seqlen.cuh"
#include "xformers/kernels/cuda/base/elements.cuh"
#include "xformers/kernels/params/band.h"

namespace xformers::cuda {

// One per sequence and head.
template <class C>
__device__ __forceinline__ C number_at(const HeadNumbers& numbers, int64_t sequence, int64_t group, int64_t head) {
  return static_cast<const C*>(numbers.data)[numbers.offset(sequence, group, head)];
}

// A bias of -inf hides its key, even one that is NaN.
template <class C>
__device__ __forceinline__ C biased(C score, C scale, C bias) {
  return bias == -static_cast<C>(INFINITY) ? bias : fma(score, scale, bias);
}

// tanh, and its derivative. With r = 1 / (exp(2 y) + 1) they are 1 - 2 r and 4 r (1 - r), to a few ulp of 1, which is
// what scores near the cap are rounded to anyway: for results of 16 bits. kAccurate: to a few ulp of each.
template <class C>
struct Capped {
  C score, slope;
};
template <bool kAccurate, class C>
struct Softcap {
  C inner, outer;  // what a product is multiplied by; the cap

  __device__ __forceinline__ Softcap(C scale, C softcap) : inner(scale / softcap), outer(softcap) {
    if constexpr (!kAccurate) inner *= 2 * 1.4426950408889634f;
  }
  __device__ __forceinline__ Capped<C> operator()(C product) const {
    if constexpr (kAccurate) {
      const C t = tanh(product * inner);
      return {outer * t, fma(-t, t, C(1))};
    } else {
      const C r = fast_reciprocal(fast_exp2(product * inner) + 1);
      return {fmaf(-2 * outer, r, outer), __saturatef(fmaf(-4 * r, r, 4 * r))};  // NaN: 0; P is NaN then
    }
  }
};

// Some of a fragment's column tiles.
struct ColumnTiles {
  int begin, end;
};

// x -> softcap * tanh(scale * x / softcap) of these tiles; slope(r, n, i, derivative) is told what dS is to be
// multiplied by.
struct NoSlope {
  __device__ __forceinline__ void operator()(int, int, int, float) const {}
};
template <bool kAccurate, int kRowTiles, int kColumnTiles, class Slope = NoSlope>
__device__ __forceinline__ void cap(Fragment<kRowTiles, kColumnTiles>& x, float scale, float softcap,
                                    const ColumnTiles& tiles = {0, kColumnTiles}, const Slope& slope = {}) {
  const Softcap<kAccurate, float> capped(scale, softcap);
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      if (n < tiles.begin || n >= tiles.end) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Capped<float> both = capped(x[r][n][i]);
        x[r][n][i] = both.score;
        slope(r, n, i, both.slope);
      }
    }
}

// What a row's scores go down by for each column of distance, and the column at none.
struct RowTilt {
  float slope, place;
};

// The row of a query, whose columns are keys.
__device__ __forceinline__ RowTilt tilt_of_query(const AttentionProblem& p, const Sequence& sequence, int64_t group,
                                                 int64_t head, int query) {
  const bool any = p.mods.alibi_slopes.data != nullptr;
  return {any ? number_at<float>(p.mods.alibi_slopes, sequence.index, group, head) : 0.0f,
          static_cast<float>(query + alibi_shift(p.band, sequence))};
}
// The row of a key, whose columns are queries.
__device__ __forceinline__ RowTilt tilt_of_key(const AttentionProblem& p, const Sequence& sequence, int64_t group,
                                               int64_t head, int key) {
  return {number_at<float>(p.mods.alibi_slopes, sequence.index, group, head),
          static_cast<float>(key - alibi_shift(p.band, sequence))};
}

// x -> scale * x - slope * |place - column| of these tiles. tilt_of(row): of the fragment's row; places don't fall.
template <int kRowTiles, int kColumnTiles, class TiltOf>
__device__ __forceinline__ void tilt(Fragment<kRowTiles, kColumnTiles>& x, float scale, int first_column,
                                     const TiltOf& tilt_of, const ColumnTiles& tiles = {0, kColumnTiles}) {
  const auto each = [&](const auto& tilted) {
    for_each_row<kRowTiles>([&](int r, int half) {
      const RowTilt row = tilt_of(lane_row(r, half));
      const auto tilt_one = tilted(row.slope, row.place - static_cast<float>(first_column + lane_column(0)));
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        if (n < tiles.begin || n >= tiles.end) continue;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& at = x[r][n][half * 2 + i];
          at = tilt_one(at, static_cast<float>(n * 8 + i));
        }
      }
    });
  };
  const float first = tilt_of(0).place - static_cast<float>(first_column),
              last = tilt_of(16 * kRowTiles - 1).place - static_cast<float>(first_column);
  if (first < kColumnTiles * 8 - 1 && last > 0) {  // the diagonal crosses the fragment
    each([&](float slope, float from) {
      return [=](float at, float column) { return fmaf(at, scale, -slope * fabsf(from - column)); };
    });
  } else {  // on one side of it the distance is a difference
    each([&](float slope, float from) {
      const float down = last > 0 ? slope : -slope, start = -down * from;
      return [=](float at, float column) { return fmaf(at, scale, fmaf(down, column, start)); };
    });
  }
}

// The sum over this lane's x * |place - column|.
template <int kRowTiles, int kColumnTiles, class PlaceOf>
__device__ __forceinline__ float distances_times(const Fragment<kRowTiles, kColumnTiles>& x, int first_column,
                                                 const PlaceOf& place_of) {
  float sum = 0;
  for_each_row<kRowTiles>([&](int r, int half) {
    const float from = place_of(lane_row(r, half)) - static_cast<float>(first_column + lane_column(0));
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        sum = fmaf(x[r][n][half * 2 + i], fabsf(from - static_cast<float>(n * 8 + i)), sum);
      }
  });
  return sum;
}

// x -> scale * x + bias, of keys [first_key, seqlen_k). bias_of(row): of the fragment's row and key 0, or null.
template <int kRowTiles, int kColumnTiles, class BiasOf>
__device__ __forceinline__ void scale_and_add(Fragment<kRowTiles, kColumnTiles>& x, float scale, int first_key,
                                              int seqlen_k, int64_t key_stride, const BiasOf& bias_of) {
  for_each_row<kRowTiles>([&](int r, int half) {
    const int first = first_key + lane_column(0);
    const auto* bias = bias_of(lane_row(r, half));
    const bool has_bias = bias != nullptr;
    if (has_bias) bias += first * key_stride;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& at = x[r][n][half * 2 + i];
        const bool adds = has_bias && first + n * 8 + i < seqlen_k;
        at = biased(at, scale, adds ? to_float(bias[i * key_stride]) : 0.0f);
      }
      bias += 8 * key_stride;
    }
  });
}

// biased() in place. (Of many scores ptxas else puts -inf into registers of their own, all of them beforehand.)
__device__ __forceinline__ void bias_in_place(float& score, float scale, float bias) {
  asm("{\n.reg .pred hidden;\n"
      "setp.eq.f32 hidden, %2, 0fFF800000;\n"
      "fma.rn.f32 %0, %0, %1, %2;\n"
      "@hidden mov.f32 %0, 0fFF800000;\n}\n"
      : "+f"(score)
      : "f"(scale), "f"(bias));
}

// The same of two column tiles from `n` on, whose bias lies as an A operand does (mma.cuh).
template <class T, int kColumnTiles>
__device__ __forceinline__ void scale_and_add(Fragment<1, kColumnTiles>& x, float scale, int n,
                                              const uint32_t (&bias)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack<T>(bias[i]);
    float* const at = &x[0][n + i / 2][i % 2 * 2];
    bias_in_place(at[0], scale, pair.x);
    bias_in_place(at[1], scale, pair.y);
  }
}

// What forward does to a fragment [queries, keys] but for a bias: the scale that is left to apply, 1 where anything was
// done. kScales: something always is; tilt_of gives slopes of 0 where there are none.
template <bool kAccurate, bool kScales, int kRowTiles, int kColumnTiles, class TiltOf>
__device__ __forceinline__ float modify(Fragment<kRowTiles, kColumnTiles>& x, float scale, const ScoreModifiers& mods,
                                        int first_key, const TiltOf& tilt_of) {
  const bool caps = mods.softcap > 0;
  if (caps) {
    cap<kAccurate, kRowTiles, kColumnTiles>(x, scale, static_cast<float>(mods.softcap));
    scale = 1;
  }
  if (mods.alibi_slopes.data || (kScales && !caps)) {
    tilt<kRowTiles, kColumnTiles>(x, scale, first_key, tilt_of);
    scale = 1;
  }
  return scale;
}

}  // namespace xformers::cuda
