// Forward without tensor cores, one block per tile of queries of one head and kOutChunks chunks of value dims: online
// softmax over tiles of keys.
// Shared memory: a chunk of Q, a chunk of K or V, the probabilities.
#pragma once

#include <limits>

#include "xformers/kernels/cuda/attention/fwd_args.h"
#include "xformers/kernels/cuda/attention/simt/simt_tile.cuh"

namespace xformers::cuda::simt {

template <class C, int kTile>
constexpr int fwd_smem_bytes() {
  return static_cast<int>(sizeof(C)) * (2 * kTile * kPitch + kTile * score_pitch<kTile>);
}

// Elements of key or value rows, whatever they are stored as.
template <class T, class C>
struct KeyElements {
  const AttentionFwdParams& p;
  const HeadsTensor &tensor, &coefficients;
  const HeadTile& tile;
  int dim, first_key;

  __device__ void operator()(C (&to)[4], int row, int d) const {
    const int64_t at = key_row(p.shape, p.seq, tile.sequence, first_key + row);
    const int64_t offset = tile.offset(tensor) + at * tensor.seq_stride;
    if (p.quantization.format == KvFormat::kPlain)
      return load_four(to, static_cast<const T*>(tensor.data) + offset, d, dim);
    const uint32_t* words = nullptr;
    if (coefficients.data) {
      words =
          static_cast<const uint32_t*>(coefficients.data) + tile.offset(coefficients) + at * coefficients.seq_stride;
    }
    for (int e = 0; e < 4 && d + e < dim; ++e) {
      to[e] = dequantised<C>(static_cast<const uint32_t*>(tensor.data) + offset, words, p.quantization, dim, d + e);
    }
  }
};

template <class T, class C, int kTile, int kOutChunks>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 4 && kOutChunks == 2 ? 2 : 1)
    attention_fwd_simt(const __grid_constant__ FwdArgs args) {
  constexpr int kPer = kTile / kSide;
  constexpr C kInfinity = std::numeric_limits<C>::infinity();
  extern __shared__ __align__(16) unsigned char smem[];
  C* const q_chunk = reinterpret_cast<C*>(smem);
  C* const kv_chunk = q_chunk + kTile * kPitch;
  C* const probs = kv_chunk + kTile * kPitch;  // [kTile][score_pitch]
  const AttentionFwdParams& p = args.p;
  const HeadTile tile = block_tile<RowsOf::kQueries>(p.shape, p.seq, args.tiles, kTile);
  if (tile.rows <= 0) return;
  const Sequence& sequence = tile.sequence;
  const Band band(p.band, sequence);
  const int dim = static_cast<int>(p.shape.head_dim), dim_v = static_cast<int>(p.shape.head_dim_v);
  const int first_dim_v = static_cast<int>(blockIdx.y) * kOutChunks * kChunkDims;
  const HeadRows<const T> q(p.q, tile, sequence.q_begin + tile.first);
  const PhiloxKey philox = dropout_key(p.dropout);
  const uint32_t drop_head = tile.drop_head(p.shape);

  C out[kOutChunks][kPer][kDimsPerThread] = {}, row_max[kPer], row_sum[kPer] = {};
  for (int i = 0; i < kPer; ++i) row_max[i] = -kInfinity;

  const Range keys = band.key_range({tile.first, tile.first + tile.rows});
  __shared__ typename TileWalk<LinesOf::kQueries, kTile>::Walk walk_memory;
  TileWalk<LinesOf::kQueries, kTile> walk(walk_memory, p.blocks, tile, keys);
  const int first_key = walk.at();
  for (; walk.more(); walk.advance()) {
    const int key = walk.at();
    const int num_keys = sequence.seqlen_k - key;
    C scores[kPer][kPer] = {};
    const KeyElements<T, C> k{p, p.k, p.quantization.k_scale_shift, tile, dim, key};
    for (int d = 0; d < dim; d += kChunkDims) {
      __syncthreads();
      if (dim > kChunkDims || key == first_key) {
        load_chunk<kTile>(q_chunk, tile.rows, d,
                          [&](C(&to)[4], int row, int at) { load_four(to, q.row(row), at, dim); });
      }
      load_chunk<kTile>(kv_chunk, num_keys, d, k);
      __syncthreads();
      multiply_chunk(scores, q_chunk, kv_chunk);
    }
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int row = thread_y() * kPer + i, query = tile.first + row;
      C largest = row_max[i];
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        const int at = key + thread_x() + j * kSide;
        const bool visible = row < tile.rows && band.visible(query, at) && walk.shows(row, at - key);
        scores[i][j] = visible ? score_of<T>(p, tile, scores[i][j], query, at) : -kInfinity;
        largest = fmax(largest, scores[i][j]);
      }
      for (int lane = 1; lane < kSide; lane *= 2) largest = fmax(largest, __shfl_xor_sync(kAllLanes, largest, lane));
      const C from = softmax_origin(largest), shrink = exp(row_max[i] - from);
      row_max[i] = largest;
      row_sum[i] *= shrink;
      for (int chunk = 0; chunk < kOutChunks; ++chunk)
        for (int c = 0; c < kDimsPerThread; ++c) out[chunk][i][c] *= shrink;
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        const int at = key + thread_x() + j * kSide;
        C x = exp(scores[i][j] - from);
        row_sum[i] += x;
        if (p.dropout.p > 0 && !keeps(philox, args.drop_rule, drop_head, query, at)) x = 0;
        probs[row * score_pitch<kTile> + thread_x() + j * kSide] = x;
      }
    }
    const KeyElements<T, C> v{p, p.v, p.quantization.v_scale_shift, tile, dim_v, key};
#pragma unroll
    for (int chunk = 0; chunk < kOutChunks; ++chunk) {
      if (first_dim_v + chunk * kChunkDims >= dim_v) break;
      __syncthreads();
      load_chunk<kTile>(kv_chunk, num_keys, first_dim_v + chunk * kChunkDims, v);
      __syncthreads();
      accumulate_chunk<kPer, kTile>(out[chunk], probs, kv_chunk);
    }
  }

#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    C sum = row_sum[i];
    for (int lane = 1; lane < kSide; lane *= 2) sum += __shfl_xor_sync(kAllLanes, sum, lane);
    const int row = thread_y() * kPer + i;
    if (row >= tile.rows) continue;
    const int64_t query = sequence.q_begin + tile.first + row;
    const auto [lse, kept] = end_row(p, sequence.index, tile.group, tile.head, row_max[i], sum);
    if (thread_x() == 0 && first_dim_v == 0) store_lse(p, lse, sequence.batch, tile.group, tile.head, query);
    const C factor = sum == 0 ? C(0) : static_cast<C>(args.kept) / sum * kept;
    const int64_t to = tile.offset(p.out) + query * p.out.seq_stride;
#pragma unroll
    for (int chunk = 0; chunk < kOutChunks; ++chunk)
#pragma unroll
      for (int c = 0; c < kDimsPerThread; ++c) {
        const int d = first_dim_v + chunk * kChunkDims + thread_dim(c);
        if (d >= dim_v) continue;
        const C x = out[chunk][i][c] * factor;
        if (p.wide_out) {
          static_cast<C*>(p.out.data)[to + d] = x;
        } else {
          static_cast<T*>(p.out.data)[to + d] = to_element<T>(x);
        }
      }
  }
}

}  // namespace xformers::cuda::simt
