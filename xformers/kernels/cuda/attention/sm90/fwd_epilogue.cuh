// Out of a warpgroup's accumulators to global memory, without a way through shared memory: four lanes that have a row's
// dims two by two swap them, so that each writes 16 bytes.
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/fragment.cuh"
#include "xformers/kernels/cuda/attention/sink.cuh"
#include "xformers/kernels/cuda/attention/sm90/fwd_schedule.cuh"

namespace xformers::cuda::sm90 {

// Lane i of each four has words[j] of column j; lane j then has column j, words[i] of lane i.
__device__ __forceinline__ void transpose_quad(uint32_t (&words)[4]) {
  const int lane = threadIdx.x % 4;
#pragma unroll
  for (int step = 1; step < 4; step *= 2)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j & step) continue;
      const bool high = (lane & step) != 0;
      const uint32_t got = __shfl_xor_sync(kAllLanes, high ? words[j] : words[j + step], step);
      (high ? words[j] : words[j + step]) = got;
    }
}

// `to`: of the row's head, dim 0. Two neighbouring columns per tile of eight.
template <class T, int kDimTiles>
__device__ __forceinline__ void store_row(T* to, const float (&row)[kDimTiles][4], int half, float factor, int dim_v,
                                          bool inside) {
  const int lane = threadIdx.x % 4;
#pragma unroll
  for (int d = 0; d < kDimTiles; d += 4) {
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) words[j] = pack<T>(row[d + j][half * 2] * factor, row[d + j][half * 2 + 1] * factor);
    transpose_quad(words);
    const int dim = (d + lane) * 8;
    if (inside && dim < dim_v) *reinterpret_cast<uint4*>(to + dim) = {words[0], words[1], words[2], words[3]};
  }
}
template <int kDimTiles>
__device__ __forceinline__ void store_row_wide(float* to, const float (&row)[kDimTiles][4], int half, float factor,
                                               int dim_v, bool inside) {
  if (!inside) return;
#pragma unroll
  for (int d = 0; d < kDimTiles; ++d) {
    const int dim = lane_column(d);
    if (dim < dim_v) {
      *reinterpret_cast<float2*>(to + dim) = {row[d][half * 2] * factor, row[d][half * 2 + 1] * factor};
    }
  }
}

// `first`: of the warp's 16 rows, in the sequence. kDrops: something may have been dropped.
template <class T, int kDimTiles, bool kDrops>
__device__ __forceinline__ void write_results(const FwdGrid& args, const HeadTile& tile, int first,
                                              const Fragment<1, kDimTiles>& acc_o, const SoftmaxRows<1>& softmax) {
  const AttentionFwdParams& p = args.p;
  const int dim_v = static_cast<int>(p.shape.head_dim_v);
  for_each_row<1>([&](int, int half) {
    const int row = first + lane_row(0, half);
    const bool inside = row < tile.first + tile.rows;
    const int64_t query = tile.sequence.q_begin + row;
    const float sum = softmax.row_sum[0][half];
    RowEnd<float> end = {};
    if (inside) {
      end =
          end_row(p, tile.sequence.index, tile.group, tile.head, natural_max(softmax.row_max[0][half], args.unit), sum);
    }
    float factor = inverse_of(sum) * end.kept;
    if constexpr (kDrops) factor *= static_cast<float>(args.kept);
    const int64_t origin = tile.offset(p.out) + query * p.out.seq_stride;
    if (p.wide_out) {
      store_row_wide(static_cast<float*>(p.out.data) + origin, acc_o[0], half, factor, dim_v, inside);
    } else {
      store_row(static_cast<T*>(p.out.data) + origin, acc_o[0], half, factor, dim_v, inside);
    }
    if (inside && threadIdx.x % 4 == 0) store_lse(p, end.lse, tile.sequence.batch, tile.group, tile.head, query);
  });
}

// Of rows that see no key.
__device__ __forceinline__ void write_empty(const FwdGrid& args, const HeadTile& tile, int first) {
  const AttentionFwdParams& p = args.p;
  for (int row = first; row < min(first + 16, tile.first + tile.rows); ++row) {
    const int64_t query = tile.sequence.q_begin + row, origin = tile.offset(p.out) + query * p.out.seq_stride;
    for (int dim = threadIdx.x % 32; dim < p.shape.head_dim_v; dim += 32) {
      if (p.wide_out) {
        static_cast<float*>(p.out.data)[origin + dim] = 0;
      } else {
        static_cast<uint16_t*>(p.out.data)[origin + dim] = 0;
      }
    }
    if (threadIdx.x % 32 == 0) {
      const auto [lse, kept] = end_row(p, tile.sequence.index, tile.group, tile.head, -INFINITY, 0.0f);
      store_lse(p, lse, tile.sequence.batch, tile.group, tile.head, query);
    }
  }
}

}  // namespace xformers::cuda::sm90
