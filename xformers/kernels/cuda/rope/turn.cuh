// Turning the pairs of a head, kWidth at a time: what the two rotary kernels share.
//
// A thread moves two pieces of kWidth elements, from the two halves of a head: at column * kWidth and half a head
// further, whichever way elements are paired; so the accesses of both modes are the same, and only differ in which
// angles belong to them. With kWidth 1 the two pieces are the two elements of a pair.
#pragma once

#include "xformers/kernels/cuda/base/vector.cuh"
#include "xformers/kernels/params/rope.h"

namespace xformers::cuda {

inline constexpr int kRopeMaxPairs = 256;  // per launch; longer heads take several

// The pairs of one launch.
struct RopePairs {
  int64_t head_dim;
  int first, count, columns;  // columns * width = count
  bool adjacents;
  double frequencies[kRopeMaxPairs];  // radians per position
};

// sin and cos of position * frequency. The angle is rounded in fp64, then taken to [-pi, pi] (2 pi in two parts), so
// positions in the millions are as exact as the first.
template <class C>
__device__ __forceinline__ void sine_and_cosine(double position, double frequency, C& sine, C& cosine) {
  const double angle = position * frequency;
  const double turns = rint(angle * 0.15915494309189533577);
  const double near = fma(-turns, 0x1.1a62633145c07p-52, fma(-turns, 0x1.921fb54442d18p+2, angle));
  const double halves = near * 0.31830988618379067154;
  if constexpr (sizeof(C) == 8) {
    sincospi(halves, &sine, &cosine);
  } else {  // of the part that fp32 holds, corrected by the rest
    const float high = static_cast<float>(halves);
    const float rest = static_cast<float>(halves - static_cast<double>(high)) * 3.14159265f;
    float s, c;
    sincospif(high, &s, &c);
    sine = fmaf(c, rest, s);
    cosine = fmaf(-s, rest, c);
  }
}

// Where the two pieces of a column begin in a head.
template <int kWidth>
__device__ __forceinline__ int64_t first_piece(const RopePairs& pairs, int column) {
  if constexpr (kWidth > 1) return column * kWidth;
  return pairs.adjacents ? 2 * int64_t{pairs.first + column} : int64_t{pairs.first + column};
}
template <int kWidth>
__device__ __forceinline__ int64_t second_piece(const RopePairs& pairs, int column) {
  const int64_t first = first_piece<kWidth>(pairs, column);
  return kWidth == 1 && pairs.adjacents ? first + 1 : first + pairs.head_dim / 2;
}

// A column's pairs come in groups, so that few angles are in registers at a time: half-split, those of the first and of
// the second half of the two pieces; adjacent, those of the first and of the second piece.
template <int kWidth>
inline constexpr int kTurnGroups = kWidth > 1 ? 2 : 1;
template <int kWidth>
inline constexpr int kTurnGroup = kWidth / kTurnGroups<kWidth>;  // pairs

// The first pair of a group, counted from pairs.first.
template <int kWidth>
__device__ __forceinline__ int group_start(const RopePairs& pairs, int column, int group) {
  constexpr int kGroup = kTurnGroup<kWidth>;
  return kWidth > 1 && pairs.adjacents ? column * kGroup + group * (pairs.count / 2) : column * kWidth + group * kGroup;
}

template <class C>
__device__ __forceinline__ void turn_pair(C& re, C& im, C sine, C cosine) {
  const C x = re, y = im;
  re = fma(x, cosine, -(y * sine));
  im = fma(y, cosine, x * sine);
}

// kCount elements from `begin`, turned in C, with one rounding.
template <int kCount, class C, class T, int kWidth>
__device__ __forceinline__ void read_part(const Packed<T, kWidth>& from, int begin, C (&to)[kCount]) {
  unpack(reinterpret_cast<const Packed<T, kCount>&>(from.at[begin]), to);
}
template <int kCount, class C, class T, int kWidth>
__device__ __forceinline__ void write_part(const C (&from)[kCount], int begin, Packed<T, kWidth>& to) {
  const Packed<T, kCount> packed = pack<T>(from);
  __builtin_memcpy(&to.at[begin], &packed, sizeof(packed));
}

template <class C, class T, int kWidth>
__device__ __forceinline__ void turn_group(Packed<T, kWidth>& first, Packed<T, kWidth>& second, bool adjacents,
                                           int group, const C (&sine)[kTurnGroup<kWidth>],
                                           const C (&cosine)[kTurnGroup<kWidth>]) {
  constexpr int kGroup = kTurnGroup<kWidth>;
  if (kWidth == 1 || !adjacents) {
    C re[kGroup], im[kGroup];
    read_part(first, group * kGroup, re);
    read_part(second, group * kGroup, im);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) turn_pair(re[i], im[i], sine[i], cosine[i]);
    write_part(re, group * kGroup, first);
    write_part(im, group * kGroup, second);
  } else if constexpr (kWidth > 1) {
    Packed<T, kWidth>& piece = group == 0 ? first : second;
    C x[kWidth];
    read_part(piece, 0, x);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) turn_pair(x[2 * i], x[2 * i + 1], sine[i], cosine[i]);
    write_part(x, 0, piece);
  }
}

}  // namespace xformers::cuda
