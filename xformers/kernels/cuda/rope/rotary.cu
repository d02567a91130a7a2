// x [outer, seqlen, head_dim] turned by position. A thread keeps its position and column, computes their sines and
// cosines once, and visits rows of `outer`.
#include <algorithm>

#include "xformers/kernels/cuda/base/cuda_check.h"
#include "xformers/kernels/cuda/rope/pairs.h"
#include "xformers/kernels/cuda/rope/rope_cuda.h"
#include "xformers/kernels/params/checks.h"

namespace xformers::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kOuterTile = 8;  // rows of `outer` per block: they share sines, and many blocks fill the GPU

struct Args {
  RotaryParams rotary;
  int positions;  // per block
  unsigned seq_tiles;
  int64_t outer_tile;  // rows of `outer` per block
  RopePairs pairs;
};

template <class T, class C, int kWidth>
__global__ void __launch_bounds__(kThreads) rotary_kernel(const __grid_constant__ Args args) {
  constexpr int kItems = 4;  // rows in flight per thread
  const RotaryParams& p = args.rotary;
  const RopePairs& pairs = args.pairs;
  const int column = static_cast<int>(threadIdx.x) % pairs.columns,
            place = static_cast<int>(threadIdx.x) / pairs.columns;
  const int64_t s = int64_t{blockIdx.x % args.seq_tiles} * args.positions + place;
  if (place >= args.positions || s >= p.seqlen) return;
  const int64_t first = first_piece<kWidth>(pairs, column), second = second_piece<kWidth>(pairs, column);
  const T* const x = static_cast<const T*>(p.x) + s * p.x_seq_stride;
  T* const out = static_cast<T*>(p.out) + s * p.out_seq_stride;
  const int64_t begin = blockIdx.x / args.seq_tiles * args.outer_tile, end = min(begin + args.outer_tile, p.outer);

  Packed<T, kWidth> a[kItems], b[kItems];
  const auto load_rows = [&](int64_t from) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (from + i >= end) break;
      a[i] = load<kWidth>(x + (from + i) * p.x_outer_stride + first);
      b[i] = load<kWidth>(x + (from + i) * p.x_outer_stride + second);
    }
  };
  load_rows(begin);
  constexpr int kGroups = kTurnGroups<kWidth>, kGroup = kTurnGroup<kWidth>;
  C sine[kGroups][kGroup], cosine[kGroups][kGroup];
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const double frequency = pairs.frequencies[group_start<kWidth>(pairs, column, group) + i];
      sine_and_cosine(static_cast<double>(s), frequency, sine[group][i], cosine[group][i]);
      if (p.inverse) sine[group][i] = -sine[group][i];
    }
  }
  for (int64_t o = begin; o < end; o += kItems) {
    if (o > begin) load_rows(o);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (o + i >= end) break;
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        turn_group(a[i], b[i], pairs.adjacents, group, sine[group], cosine[group]);
      }
      store(out + (o + i) * p.out_outer_stride + first, a[i]);
      store(out + (o + i) * p.out_outer_stride + second, b[i]);
    }
  }
}

}  // namespace

void rotary(const RotaryParams& p, const Stream& stream) {
  check(p);
  if (p.outer == 0 || p.seqlen == 0) return;
  const bool vectors =
      rows_are_aligned(p.x, p.x_outer_stride, p.dtype) && rows_are_aligned(p.x, p.x_seq_stride, p.dtype) &&
      rows_are_aligned(p.out, p.out_outer_stride, p.dtype) && rows_are_aligned(p.out, p.out_seq_stride, p.dtype);
  with_rope_types(p.dtype, p.layout.rotate_in_fp64, vectors, p.head_dim, [&]<class T, class C, int kWidth>() {
    for_each_launch(p.head_dim, kWidth, p.layout.adjacents, p.scaling, [&](const RopePairs& pairs) {
      const int positions = kThreads / pairs.columns;
      const int64_t seq_tiles = (p.seqlen + positions - 1) / positions;
      const int64_t outer_tile = std::min(kOuterTile, p.outer);
      const Args args{.rotary = p,
                      .positions = positions,
                      .seq_tiles = static_cast<unsigned>(seq_tiles),
                      .outer_tile = outer_tile,
                      .pairs = pairs};
      const int64_t blocks = seq_tiles * ((p.outer + outer_tile - 1) / outer_tile);
      if (blocks > 0x7fffffff) throw Error("rotary: x has too many rows, expected fewer.  Fix: cut the batch");
      rotary_kernel<T, C, kWidth>
          <<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream.stream)>>>(args);
      XFORMERS_CUDA_CHECK(cudaGetLastError());
    });
  });
}

}  // namespace xformers::cuda
