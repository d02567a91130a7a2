// Forward for few rows, bound by reading K and V once. A block owns one tile of 16 rows and one part of the keys, of
// which its warps take turns: every warp streams K and V of its own blocks of keys through its own ring in shared
// memory and waits for nobody until the end, where the warps' results are merged.
//
//   fill the ring; read Q into registers
//   for this warp's blocks of keys:  wait for the oldest stage | S = Q K^T, softmax, O += P V | refill the stage
//   merge the warps; write out and lse, or this split's partial results
//   where the parts of a tile are a cluster: merge its blocks, each block a share of the numbers, and write
//
// A lane holds rows lane / 4 and + 8, as in sm80/fwd_kernel.cuh.
#pragma once

#include "xformers/kernels/cuda/arch/cluster.cuh"
#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/decode/decode_clear.cuh"
#include "xformers/kernels/cuda/attention/decode/decode_tile.cuh"
#include "xformers/kernels/cuda/attention/epilogue.cuh"
#include "xformers/kernels/cuda/attention/key_walk.cuh"
#include "xformers/kernels/cuda/attention/sm80/tile.cuh"
#include "xformers/kernels/cuda/base/elements.cuh"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda::decode {

template <class T, DecodePolicy kPolicy>
class Decode {
  static constexpr int kDim = kPolicy.head_dim, kKeys = kPolicy.keys, kStages = kPolicy.stages, kWarps = kPolicy.warps;
  static constexpr int kKeyTiles = kKeys / 8, kDimTiles = kDim / 8;
  using Memory = DecodeMemory<kPolicy>;
  using Scores = Fragment<1, kKeyTiles>;
  using Layout = sm80::TileLayout<kDim>;
  static constexpr int kChunks = Layout::kChunks, kRowsPerCopy = 32 / kChunks > 0 ? 32 / kChunks : 1;

  const FwdArgs& args_;
  const AttentionFwdParams& p_;
  const DecodeTile& tile_;
  const Band band_;
  const TileRows rows_;
  Memory& memory_;
  uint32_t ring_;  // of this warp
  int warp_, lane_;
  const T *k_, *v_;
  uint32_t smem_q_;  // or in registers
  uint32_t q_[kPolicy.shares_q() ? 1 : kDim / 16][4];
  Fragment<1, kDimTiles> acc_o_ = {};
  SoftmaxRows<1> softmax_;

 public:
  __device__ __forceinline__ Decode(const FwdArgs& args, const DecodeTile& tile, Memory& memory)
      : args_(args),
        p_(args.p),
        tile_(tile),
        band_(args.p.band, tile.sequence),
        rows_{tile, args.packed_heads},
        memory_(memory) {
    warp_ = threadIdx.x / 32, lane_ = threadIdx.x % 32;
    ring_ = shared_address(&memory.rings[warp_][0]);
    smem_q_ = shared_address(memory.q);
    k_ = origin(p_.k), v_ = origin(p_.v);
  }

  __device__ __forceinline__ void run() {
    const Range queries = rows_.queries(), keys = band_.key_range(queries);
    // In units of what the block takes at once.
    const Range steps =
        part_of(blocks_with(keys, kPolicy.step()), static_cast<int>(blockIdx.y), args_.num_splits, args_.part_steps);
    if (!steps.empty()) stream(queries, steps.begin * kPolicy.step(), min(steps.end * kPolicy.step(), keys.end));
    finish();
  }

 private:
  __device__ __forceinline__ const T* origin(const HeadsTensor& t) const {
    return static_cast<const T*>(t.data) + tile_.offset(t);
  }
  __device__ __forceinline__ uint32_t stage_k(int stage) const {
    return ring_ + stage * static_cast<int>(sizeof(typename Memory::Stage));
  }
  static __device__ __forceinline__ uint32_t v_behind(uint32_t k) {
    return k + static_cast<int>(offsetof(typename Memory::Stage, v));
  }

  __device__ __forceinline__ void stream(Range queries, int begin, int end) {
    int next = begin + warp_ * kKeys;  // the block of keys that is asked for next
    int64_t row = row_of(next, end);
#pragma unroll
    for (int stage = 0; stage < kStages; ++stage) {
      ask(stage, next, end, row);
      next += kPolicy.step();
      row = row_of(next, end);
    }
    load_q();
    int stage = 0;
    for (int key = begin + warp_ * kKeys; key < end; key += kPolicy.step()) {
      copy_async_wait<kStages - 1>();
      __syncwarp();  // what the other lanes copied is there too
      const uint32_t k = stage_k(stage), v = v_behind(k);
      Scores s = {};
      multiply_scores(s, k);
      modify<false, false, 1, kKeyTiles>(s, 1, p_.mods, key, [&](int row) {
        const int at = tile_.first + min(row, tile_.rows - 1);
        return tilt_of_query(p_, tile_.sequence, tile_.group, rows_.head_of(at), rows_.query_of(at));
      });
      if (!band_.is_full(queries, {key, key + kKeys})) {
        mask<1, kKeyTiles>(s, key, [&](int row) { return visible_keys(band_, rows_.query_of(tile_.first + row)); });
      }
      softmax_.template step<kKeyTiles, kDimTiles>(s, acc_o_, unit());
      accumulate(s, v);
      __syncwarp();  // everybody is done with the stage
      ask(stage, next, end, row);
      next += kPolicy.step();
      row = row_of(next, end);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    copy_async_wait<0>();
  }

  // Of pages: where the key of this lane lies, looked up long before its copy begins.
  __device__ __forceinline__ int64_t row_of(int first, int end) const {
    if (!p_.seq.paged()) return 0;
    const int key = first + lane_ % kKeys;
    return key < end ? key_row(p_.shape, p_.seq, tile_.sequence, key) : 0;
  }

  // Copies keys [first, + kKeys) into a stage; those from `end` on become zeros. One group of copies per call.
  __device__ __forceinline__ void ask(int stage, int first, int end, int64_t row) const {
    const uint32_t k = stage_k(stage), v = v_behind(k);
    if (first < end) {
      const int dim_k = static_cast<int>(p_.shape.head_dim), dim_v = static_cast<int>(p_.shape.head_dim_v);
      const int chunk = lane_ % kChunks, lane_row = lane_ / kChunks;
      const bool in_k = chunk * kChunk < dim_k, in_v = chunk * kChunk < dim_v;
      const int64_t base = tile_.sequence.k_begin + first;
#pragma unroll
      for (int i = 0; i < kKeys / kRowsPerCopy; ++i) {
        const int at = lane_row + i * kRowsPerCopy;
        const bool valid = first + at < end;
        int64_t from = base + at;
        if (p_.seq.paged()) from = __shfl_sync(0xffffffffu, row, at);
        const uint32_t offset = Layout::offset(at, chunk);
        copy_async_16(k + offset, valid && in_k ? k_ + from * p_.k.seq_stride + chunk * kChunk : k_, valid && in_k);
        copy_async_16(v + offset, valid && in_v ? v_ + from * p_.v.seq_stride + chunk * kChunk : v_, valid && in_v);
      }
    }
    copy_async_commit();
  }

  // Fragments of A operands, straight from memory: 4 bytes of rows lane / 4 and + 8.
  __device__ __forceinline__ void load_q() {
    const int dim = static_cast<int>(p_.shape.head_dim);
    const T* from[2];
    bool valid[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane_ / 4 + half * 8;
      valid[half] = row < tile_.rows;
      const RowPlace place = rows_.place_of(tile_.first + (valid[half] ? row : 0));
      from[half] = static_cast<const T*>(p_.q.data) + tile_.sequence.batch * p_.q.batch_stride +
                   tile_.group * p_.q.group_stride + place.query * p_.q.seq_stride + place.head * p_.q.head_stride;
    }
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      if (kPolicy.shares_q() && warp_ != d % kWarps) continue;
      uint32_t parts[4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = d * 16 + i / 2 * 8 + lane_ % 4 * 2;
        if (valid[i % 2] && at < dim) parts[i] = *reinterpret_cast<const uint32_t*>(from[i % 2] + at);
      }
      if constexpr (kPolicy.shares_q()) {
        store_shared_16(smem_q_ + (d * 32 + lane_) * 16, {parts[0], parts[1], parts[2], parts[3]});
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) q_[d][i] = parts[i];
      }
    }
    if constexpr (kPolicy.shares_q()) __syncthreads();
  }

  // In natural units.
  static __device__ __forceinline__ ScoreUnit unit() { return ScoreUnit(1, kLog2e); }
  __device__ __forceinline__ void multiply_scores(Scores& s, uint32_t k) {
    Scores odd = {};  // every second slice apart: products wait for each other half as long
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      float(&sum)[kKeyTiles][4] = d % 2 ? odd[0] : s[0];
      uint32_t a[4];
      if constexpr (kPolicy.shares_q()) {
        const uint4 fragment = load_shared_16(smem_q_ + (d * 32 + lane_) * 16);
        a[0] = fragment.x, a[1] = fragment.y, a[2] = fragment.z, a[3] = fragment.w;
      } else {
        a[0] = q_[d][0], a[1] = q_[d][1], a[2] = q_[d][2], a[3] = q_[d][3];
      }
#pragma unroll
      for (int n = 0; n < kKeyTiles; n += 2) {
        uint32_t b[4];
        sm80::load_b<kDim>(b, k, n * 8, d);
        mma<T>(sum[n], a, b[0], b[1]);
        mma<T>(sum[n + 1], a, b[2], b[3]);
      }
    }
    const float softmax_scale = static_cast<float>(p_.softmax_scale);
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[0][n][i] = (s[0][n][i] + odd[0][n][i]) * softmax_scale;
  }

  __device__ __forceinline__ void accumulate(const Scores& scores, uint32_t v) {
    const float(&s)[kKeyTiles][4] = scores[0];
#pragma unroll
    for (int n = 0; n < kKeyTiles; n += 2) {
      const uint32_t a[4] = {pack<T>(s[n][0], s[n][1]), pack<T>(s[n][2], s[n][3]), pack<T>(s[n + 1][0], s[n + 1][1]),
                             pack<T>(s[n + 1][2], s[n + 1][3])};
#pragma unroll
      for (int d = 0; d < kDimTiles; d += 2) {
        uint32_t b[4];
        sm80::load_b_transposed<kDim>(b, v, n * 8, d / 2);
        mma<T>(acc_o_[0][d], a, b[0], b[1]);
        mma<T>(acc_o_[0][d + 1], a, b[2], b[3]);
      }
    }
  }

  // Two neighbouring numbers of a row, relative to the maximum beside them.
  struct Pair {
    PartStats stats;
    float x, y;
  };
  // Of parts of the keys: stats_of(part) and pair_of(part) say what each has left.
  template <class StatsOf, class PairOf>
  static __device__ __forceinline__ Pair add_parts(int parts, const StatsOf& stats_of, const PairOf& pair_of) {
    Pair all{{-INFINITY, 0}, 0, 0};
#pragma unroll 8
    for (int part = 0; part < parts; ++part) all.stats.row_max = fmaxf(all.stats.row_max, stats_of(part).row_max);
#pragma unroll 8
    for (int part = 0; part < parts; ++part) {
      const PartStats stats = stats_of(part);
      const float weight = weight_of(stats.row_max, all.stats.row_max), share = weight * stats.row_sum;
      const float2 pair = pair_of(part);
      all.stats.row_sum += share;
      if (share == 0) continue;  // as in the merge of parts: an infinite value of no weight is none
      all.x += weight * pair.x, all.y += weight * pair.y;
    }
    return all;
  }

  // The warps' results, parts of the keys, meet in shared memory, and then those of the cluster's blocks.
  __device__ __forceinline__ void finish() {
    auto& [sums, stats, block_stats] = memory_.results;
    softmax_.finish();
    __syncthreads();  // all warps are done with their rings
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane_ / 4 + half * 8;
      if (row >= tile_.rows) continue;
      if (lane_ % 4 == 0) {
        stats[warp_][row] = {natural_max(softmax_.row_max[0][half], unit()), softmax_.row_sum[0][half]};
      }
      float* const to = sums[warp_][row];
#pragma unroll
      for (int d = 0; d < kDimTiles; ++d) {
        *reinterpret_cast<float2*>(to + (d * 8 + lane_ % 4 * 2)) = {acc_o_[0][d][half * 2], acc_o_[0][d][half * 2 + 1]};
      }
    }
    __syncthreads();
    for_each_pair(0, 1, [&](int row, int at) {
      const Pair pair = add_parts(
          kWarps, [&](int warp) { return stats[warp][row]; },
          [&](int warp) { return *reinterpret_cast<const float2*>(&sums[warp][row][at]); });
      if (!args_.parts_meet) return finish_pair(row, at, pair);
      *reinterpret_cast<float2*>(&sums[0][row][at]) = {pair.x, pair.y};  // which nobody else reads
      if (at == 0) block_stats[row] = pair.stats;
    });
    if (!args_.parts_meet) return;
    cluster::sync();
    for_each_pair(static_cast<int>(blockIdx.y), args_.num_splits, [&](int row, int at) {
      const uint32_t of_stats = shared_address(&block_stats[row]), of_sums = shared_address(&sums[0][row][at]);
      finish_pair(row, at,
                  add_parts(
                      args_.num_splits,
                      [&](int part) {
                        const float2 pair = cluster::load_pair(cluster::place_of(of_stats, part));
                        return PartStats{pair.x, pair.y};
                      },
                      [&](int part) { return cluster::load_pair(cluster::place_of(of_sums, part)); }));
    });
    cluster::sync();  // nobody leaves whose memory is read
  }

  // visit(row, dim) for every second dim of every row, a share of them to each of `blocks`.
  template <class Visit>
  __device__ __forceinline__ void for_each_pair(int block, int blocks, const Visit& visit) const {
    const int dim_v = static_cast<int>(p_.shape.head_dim_v), pairs = tile_.rows * (kDim / 2);
    for (int i = block * kPolicy.threads() + static_cast<int>(threadIdx.x); i < pairs;
         i += blocks * kPolicy.threads()) {
      const int row = i / (kDim / 2), at = i % (kDim / 2) * 2;
      if (at < dim_v) visit(row, at);
    }
  }

  __device__ __forceinline__ void finish_pair(int row, int at, const Pair& pair) const {
    const RowPlace place = rows_.place_of(tile_.first + row);
    const float kept = finish_row(args_, static_cast<int>(blockIdx.y), tile_, place, pair.stats, at == 0);
    const float factor = inverse_of(pair.stats.row_sum) * kept;
    write(place, at, static_cast<int>(p_.shape.head_dim_v), pair.x * factor, pair.y * factor);
  }

  __device__ __forceinline__ void write(const RowPlace& place, int at, int dim_v, float x, float y) const {
    if (args_.out_partial) {
      const int64_t to = blockIdx.y * args_.total_rows + partial_row(p_.shape, tile_, place);
      store_pair(args_.out_partial + to * dim_v, at, dim_v, x, y, dim_v % 2 == 0);
    } else if (p_.wide_out) {
      store_pair(out_row<float>(p_.out, tile_, place), at, dim_v, x, y, args_.aligned_out);
    } else {
      store_pair(out_row<T>(p_.out, tile_, place), at, dim_v, x, y, args_.aligned_out);
    }
  }
};

// (nvcc's host stub of a kernel can't be a template over a struct, so the policy is made here.)
template <class T, int kHeadDim>
__global__ void __launch_bounds__(decode_policy(kHeadDim).threads(), kBlocksPerMultiprocessor)
    attention_decode(const __grid_constant__ FwdArgs args) {
  extern __shared__ __align__(128) unsigned char smem[];
  wait_for_kernel_before();
  const DecodeTile tile = decode_tile(args);
  if (args.p.seq.packed() && blockIdx.y == 0 && tile.slot == 0) clear_ends<T>(args, tile);
  if (tile.rows <= 0) return;
  auto& memory = *reinterpret_cast<DecodeMemory<decode_policy(kHeadDim)>*>(smem);
  Decode<T, decode_policy(kHeadDim)>(args, tile, memory).run();
}

}  // namespace xformers::cuda::decode
