// Backward without tensor cores: one kernel sums dk and dv over the queries that see a tile of keys, another sums dq
// over the keys that a tile of queries sees and writes the bias gradient. A block has kChunks chunks of dims. No sum
// crosses a block, so results repeat bit for bit. Shared memory: two chunks of rows, P and dS.
#pragma once

#include <cub/block/block_reduce.cuh>

#include "xformers/kernels/cuda/attention/bwd_args.h"
#include "xformers/kernels/cuda/attention/simt/simt_tile.cuh"

namespace xformers::cuda::simt {

template <class C, int kTile>
constexpr int bwd_smem_bytes() {
  return static_cast<int>(sizeof(C)) * (2 * kTile * kPitch + 2 * kTile * score_pitch<kTile>);
}

template <class T, class C, int kTile>
struct BackwardTile {
  static constexpr int kPer = kTile / kSide;
  const BwdArgs& args;
  const AttentionBwdParams& p;
  const HeadTile& tile;
  const int first_dim;  // of the results
  const Band band;
  const HeadRows<const T> q, k, v, dout;
  const C* delta;  // from the sequence's first query
  C *left, *right, *probs, *ds;

  __device__ BackwardTile(const BwdArgs& args, const HeadTile& tile, int first_dim, unsigned char* smem)
      : args(args),
        p(args.p),
        tile(tile),
        first_dim(first_dim),
        band(args.p.band, tile.sequence),
        q(p.q, tile, tile.sequence.q_begin),
        k(p.k, tile, tile.sequence.k_begin),
        v(p.v, tile, tile.sequence.k_begin),
        dout(p.dout, tile, tile.sequence.q_begin) {
    const int64_t row =
        ((tile.sequence.batch * p.shape.num_groups + tile.group) * p.shape.heads_per_group + tile.head) *
            p.shape.seqlen_q +
        tile.sequence.q_begin;
    delta = static_cast<const C*>(args.delta) + row;
    left = reinterpret_cast<C*>(smem);
    right = left + kTile * kPitch;
    probs = right + kTile * kPitch;
    ds = probs + kTile * score_pitch<kTile>;
  }

  __device__ void load(C* to, const HeadRows<const T>& from, int first, int length, int d, int dim) const {
    load_chunk<kTile>(to, length - first, d,
                      [&](C(&values)[4], int row, int at) { load_four(values, from.row(first + row), at, dim); });
  }
  // sums = a[queries] . b[keys]
  __device__ void multiply(C (&sums)[kPer][kPer], const HeadRows<const T>& a, const HeadRows<const T>& b, int query,
                           int key, int64_t dim) const {
    for (int d = 0; d < dim; d += kChunkDims) {
      __syncthreads();
      load(left, a, query, tile.sequence.seqlen_q, d, static_cast<int>(dim));
      load(right, b, key, tile.sequence.seqlen_k, d, static_cast<int>(dim));
      __syncthreads();
      multiply_chunk(sums, left, right);
    }
  }

  // P (what dropout leaves of it, times 1 / (1 - p)) and dS of queries [query, + kTile) and keys [key, + kTile).
  // by_key: probs and ds are [keys][queries], else [queries][keys]. shows(row, column): what blocks say.
  // visit(i, j, query, key, dS behind a cap), of what is visible.
  template <class Shows, class Visit>
  __device__ void differentiate(int query, int key, bool by_key, const Shows& shows, const Visit& visit) const {
    C scores[kPer][kPer] = {}, dprobs[kPer][kPer] = {};
    multiply(scores, q, k, query, key, p.shape.head_dim);
    multiply(dprobs, dout, v, query, key, p.shape.head_dim_v);
    const PhiloxKey philox = dropout_key(p.dropout);
    const uint32_t drop_head = tile.drop_head(p.shape);
    for (int i = 0; i < kPer; ++i) {
      const int row = thread_y() * kPer + i, at_query = query + row;
      RowLse<C> lse{};
      if (at_query < tile.sequence.seqlen_q) {
        lse = load_lse<C>(p, tile.sequence.batch, tile.group, tile.head, tile.sequence.q_begin + at_query);
      }
      for (int j = 0; j < kPer; ++j) {
        const int column = thread_x() + j * kSide, at_key = key + column;
        C prob = 0, gradient = 0, cap_slope = 1;
        if (at_query < tile.sequence.seqlen_q && band.visible(at_query, at_key) && shows(row, column)) {
          prob = exp((score_of<T>(p, tile, scores[i][j], at_query, at_key, &cap_slope) - lse.lse) - lse.low);
          C factor = 1;
          if (p.dropout.p > 0) {
            factor = keeps(philox, args.drop_rule, drop_head, at_query, at_key) ? static_cast<C>(args.kept) : C(0);
          }
          gradient = prob * (dprobs[i][j] * factor - delta[at_query]);
          prob *= factor;
          visit(i, j, at_query, at_key, gradient);
          gradient *= cap_slope;
        }
        const int place = by_key ? column * score_pitch<kTile> + row : row * score_pitch<kTile> + column;
        probs[place] = prob;
        ds[place] = gradient;
      }
    }
  }

  template <int kChunks>
  __device__ void write(const HeadsTensor& tensor, int64_t first_row, const C (&sums)[kChunks][kPer][kDimsPerThread],
                        C factor, int64_t dim) const {
    const HeadRows<T> to(tensor, tile, first_row);
    for (int i = 0; i < kPer; ++i) {
      const int row = thread_y() * kPer + i;
      if (row >= tile.rows) continue;
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk)
        for (int c = 0; c < kDimsPerThread; ++c) {
          const int d = first_dim + chunk * kChunkDims + thread_dim(c);
          if (d < dim) to.row(row)[d] = to_element<T>(sums[chunk][i][c] * factor);
        }
    }
  }
};

template <class T, class C, int kTile, int kChunks>
__global__ void __launch_bounds__(kThreads) attention_bwd_dkdv_simt(const __grid_constant__ BwdArgs args) {
  constexpr int kPer = kTile / kSide;
  extern __shared__ __align__(16) unsigned char smem[];
  const AttentionBwdParams& p = args.p;
  const HeadTile tile = block_tile<RowsOf::kKeys>(p.shape, p.seq, args.tiles, kTile);
  if (tile.rows <= 0) return;
  const BackwardTile<T, C, kTile> work(args, tile, static_cast<int>(blockIdx.y) * kChunks * kChunkDims, smem);
  C dk[kChunks][kPer][kDimsPerThread] = {}, dv[kChunks][kPer][kDimsPerThread] = {};
  __shared__ typename TileWalk<LinesOf::kKeys, kTile>::Walk walk_memory;
  TileWalk<LinesOf::kKeys, kTile> walk(walk_memory, p.blocks, tile,
                                       work.band.query_range({tile.first, tile.first + tile.rows}));
  for (; walk.more(); walk.advance()) {
    const int query = walk.at();
    work.differentiate(
        query, tile.first, true, [&](int row, int column) { return walk.shows(column, row); },
        [](int, int, int, int, C) {});
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int d = work.first_dim + chunk * kChunkDims;
      if (d >= p.shape.head_dim && d >= p.shape.head_dim_v) break;
      __syncthreads();
      work.load(work.left, work.q, query, tile.sequence.seqlen_q, d, static_cast<int>(p.shape.head_dim));
      work.load(work.right, work.dout, query, tile.sequence.seqlen_q, d, static_cast<int>(p.shape.head_dim_v));
      __syncthreads();
      accumulate_chunk<kPer, kTile>(dk[chunk], work.ds, work.left);
      accumulate_chunk<kPer, kTile>(dv[chunk], work.probs, work.right);
    }
  }
  work.write(p.dk, tile.sequence.k_begin + tile.first, dk, static_cast<C>(p.softmax_scale), p.shape.head_dim);
  work.write(p.dv, tile.sequence.k_begin + tile.first, dv, C(1), p.shape.head_dim_v);
}

template <class T, class C, int kTile, int kChunks>
__global__ void __launch_bounds__(kThreads) attention_bwd_dq_simt(const __grid_constant__ BwdArgs args) {
  constexpr int kPer = kTile / kSide;
  extern __shared__ __align__(16) unsigned char smem[];
  const AttentionBwdParams& p = args.p;
  const HeadTile tile = block_tile<RowsOf::kQueries>(p.shape, p.seq, args.query_blocks, kTile);
  SlopePart* const slope_part = args.slope_parts && blockIdx.y == 0 ? args.slope_parts + blockIdx.x : nullptr;
  if (tile.rows <= 0) {
    if (slope_part && threadIdx.x == 0) *slope_part = {};
    return;
  }
  const BackwardTile<T, C, kTile> work(args, tile, static_cast<int>(blockIdx.y) * kChunks * kChunkDims, smem);
  const bool writes_dbias = p.dbias.data && !p.dbias_shared && blockIdx.y == 0;
  C slope_sum = 0;
  C dq[kChunks][kPer][kDimsPerThread] = {};
  __shared__ typename TileWalk<LinesOf::kQueries, kTile>::Walk walk_memory;
  TileWalk<LinesOf::kQueries, kTile> walk(walk_memory, p.blocks, tile,
                                          work.band.key_range({tile.first, tile.first + tile.rows}));
  for (; walk.more(); walk.advance()) {
    const int key = walk.at();
    const auto shows = [&](int row, int column) { return walk.shows(row, column); };
    work.differentiate(tile.first, key, false, shows, [&](int, int, int at_query, int at_key, C ds) {
      if (writes_dbias) {
        static_cast<T*>(p.dbias.data)[bias_offset(p.dbias, tile, at_query, at_key)] = to_element<T>(ds);
      }
      if (slope_part) slope_sum = fma(ds, alibi_distance<C>(p, tile, at_query, at_key), slope_sum);
    });
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int d = work.first_dim + chunk * kChunkDims;
      if (d >= p.shape.head_dim) break;
      __syncthreads();
      work.load(work.right, work.k, key, tile.sequence.seqlen_k, d, static_cast<int>(p.shape.head_dim));
      __syncthreads();
      accumulate_chunk<kPer, kTile>(dq[chunk], work.ds, work.right);
    }
  }
  work.write(p.dq, tile.sequence.q_begin + tile.first, dq, static_cast<C>(p.softmax_scale), p.shape.head_dim);
  if (!slope_part) return;
  using Reduce = cub::BlockReduce<double, kThreads>;
  __shared__ typename Reduce::TempStorage memory;
  const double sum = Reduce(memory).Sum(static_cast<double>(slope_sum));
  if (threadIdx.x == 0) *slope_part = {sum, tile.sequence.index};
}

// The gradient of a bias that sequences or heads share, by tiles of the bias: a block adds up what all of them have,
// one after the other, and adds it to what is there.
template <class T, class C, int kTile>
__global__ void __launch_bounds__(kThreads) attention_shared_dbias_simt(const __grid_constant__ BwdArgs args) {
  constexpr int kPer = kTile / kSide;
  extern __shared__ __align__(16) unsigned char smem[];
  const AttentionBwdParams& p = args.p;
  const ScoreBias& dbias = p.dbias;
  const int64_t sequences = num_sequences(p.shape, p.seq), groups = p.shape.num_groups, heads = p.shape.heads_per_group;
  const int64_t own_heads = own_entries(dbias.head_stride, heads), own_groups = own_entries(dbias.group_stride, groups);
  int64_t rest = blockIdx.x;
  const auto take = [&](int64_t by) {
    const int64_t index = rest % by;
    rest /= by;
    return index;
  };
  const int key = static_cast<int>(take(args.tiles)) * kTile, query = static_cast<int>(take(args.query_blocks)) * kTile;
  const int64_t first_head = take(own_heads), first_group = take(own_groups), first_sequence = rest;
  C sums[kPer][kPer] = {};
  bool any = false;
  for (int64_t s = first_sequence; s < sequences; s += own_entries(dbias.batch_stride, sequences)) {
    const Sequence sequence = sequence_at(p.shape, p.seq, s);
    const Band band(p.band, sequence);
    const int end = min(query + kTile, sequence.seqlen_q);
    if (query >= end) continue;
    const Range keys = band.key_range({query, end});
    if (key >= keys.end || key + kTile <= keys.begin) continue;
    any = true;
    for (int64_t group = first_group; group < groups; group += own_groups) {
      for (int64_t head = first_head; head < heads; head += own_heads) {
        const HeadTile tile{sequence, static_cast<int>(group), static_cast<int>(head), query, end - query};
        const BackwardTile<T, C, kTile> work(args, tile, 0, smem);
        work.differentiate(
            query, key, false, [](int, int) { return true; },  // packed sequences have no block mask
            [&](int i, int j, int, int, C ds) { sums[i][j] += ds; });
      }
    }
  }
  if (!any) return;
#pragma unroll
  for (int i = 0; i < kPer; ++i)
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const int at_query = query + thread_y() * kPer + i, at_key = key + thread_x() + j * kSide;
      if (at_query >= p.seq.most_queries || at_key >= p.seq.most_keys) continue;
      static_cast<C*>(dbias.data)[dbias.offset(first_sequence, first_group, first_head, at_query, at_key)] +=
          sums[i][j];
    }
}

}  // namespace xformers::cuda::simt
