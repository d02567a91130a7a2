// Backward in fp32 on tensor cores (three TF32 products, mma_tf32.cuh), one block per tile of keys of one head:
//
//   load K, V
//   for blocks of queries that see them:
//     load the next Q, dO | S^T = K Q^T | bias, mask, dropout;  P^T | dV += P^T dO
//     dP^T = V dO^T | dS^T | dK += dS^T Q,  dq += scale dS K
//   write dK, dV
//
// Scores are transposed, so that P^T and dS^T are in registers what the products with dO and Q want; only dS passes
// through shared memory for dq. A lane holds keys lane / 4 and + 8 of its warp's 16. dq, zeros before, is summed in
// global memory by all key tiles: in any order, or, where args.turns is given, in the order of the tiles.
// Shared memory: K, V, [stages] Q, [stages] dO, dS, [stages] lse and delta.
#pragma once

#include "xformers/kernels/cuda/attention/sm80_fp32/bwd_scores.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/tile.cuh"

namespace xformers::cuda::sm80_fp32 {

// The first block of queries of a sequence in args.turns; blocks of different sequences do not meet.
__device__ __forceinline__ int64_t first_query_block(const SeqLayout& seq, const Sequence& sequence, int block_m) {
  return seq.packed() ? sequence.q_begin / block_m + sequence.index : 0;
}

template <BwdPolicy kPolicy>
class Backward : BackwardScores<kPolicy> {
  using Base = BackwardScores<kPolicy>;
  using Base::args_, Base::p_, Base::tile_, Base::band_, Base::warp_key_;
  using Base::kBlockM, Base::kBlockN, Base::kQueryTiles, Base::kScored;
  using Base::key_of, Base::is_dropped;
  using typename Base::Scores;
  static constexpr int kDim = kPolicy.head_dim, kDims32 = kDim / 32;
  static constexpr int kStages = kPolicy.stages, kThreads = kPolicy.threads();
  using Gradient = float[kDims32][4][4];  // [16 keys, dims], columns in the order of Sums

  uint32_t smem_k_, smem_v_, smem_q_, smem_dout_, smem_ds_, smem_rows_;
  const float *q_, *dout_;  // this thread's part of the next block
  int64_t head_;            // of the whole: (batch * num_groups + group) * heads_per_group + head
  Gradient dk_ = {}, dv_ = {};

 public:
  __device__ __forceinline__ Backward(const BwdArgs& args, const BwdTile& tile, unsigned char* smem)
      : Base(args, tile, reinterpret_cast<const float*>(smem + kPolicy.rows_offset())) {
    smem_k_ = shared_address(smem);
    smem_v_ = smem_k_ + kPolicy.tile_bytes(kBlockN);
    smem_q_ = smem_v_ + kPolicy.tile_bytes(kBlockN);
    smem_dout_ = smem_q_ + kStages * kPolicy.tile_bytes(kBlockM);
    smem_ds_ = smem_dout_ + kStages * kPolicy.tile_bytes(kBlockM);
    smem_rows_ = smem_k_ + kPolicy.rows_offset();
    const AttentionShape& shape = p_.shape;
    head_ = (tile.sequence.batch * shape.num_groups + tile.group) * shape.heads_per_group + tile.head;
  }

  __device__ __forceinline__ void run() {
    const Range queries = band_.query_range({tile_.first_key, tile_.first_key + tile_.keys});
    const int first = queries.begin / kBlockM, last = queries.empty() ? 0 : ceil_div(queries.end, kBlockM);
    if (first < last) {
      load_keys(smem_k_, p_.k, p_.shape.head_dim);
      load_keys(smem_v_, p_.v, p_.shape.head_dim_v);
      q_ = part_of(p_.q, tile_.sequence.q_begin + first * kBlockM);
      dout_ = part_of(p_.dout, tile_.sequence.q_begin + first * kBlockM);
      load_queries(first, 0);
      copy_async_commit();
      int stage = 0;
#pragma unroll 1
      for (int block = first; block < last; ++block) {
        copy_async_wait<0>();
        __syncthreads();  // this block is there; everybody is done with the one before
        if (kStages > 1 && block + 1 < last) load_queries(block + 1, stage ^ 1);
        copy_async_commit();
        step(block, stage);
        if (kStages > 1) {
          stage ^= 1;
        } else if (block + 1 < last) {
          __syncthreads();
          load_queries(block + 1, 0);
          copy_async_commit();
        }
      }
    }
    write_keys(p_.dk, dk_, static_cast<float>(p_.softmax_scale), p_.shape.head_dim);
    write_keys(p_.dv, dv_, static_cast<float>(args_.kept), p_.shape.head_dim_v);
  }

 private:
  // This thread's part of the first of a tile's rows.
  __device__ __forceinline__ const float* part_of(const HeadsTensor& tensor, int64_t first_row) const {
    return thread_part<kDim, kThreads>(
        static_cast<const float*>(tensor.data) + tile_.heads_offset(tensor) + first_row * tensor.seq_stride,
        tensor.seq_stride);
  }
  __device__ __forceinline__ void load_keys(uint32_t to, const HeadsTensor& tensor, int64_t dim) {
    load_rows<kBlockN, kDim, kThreads>(to, part_of(tensor, tile_.sequence.k_begin + tile_.first_key), tensor.seq_stride,
                                       tile_.keys, static_cast<int>(dim), args_.aligned);
  }
  // The next block. Rows past the sequence are zeros everywhere: they add nothing.
  __device__ __forceinline__ void load_queries(int block, int stage) {
    const int rows = tile_.sequence.seqlen_q - block * kBlockM;
    const int64_t first = tile_.sequence.q_begin + block * kBlockM;
    load_rows<kBlockM, kDim, kThreads>(smem_q_ + stage * kPolicy.tile_bytes(kBlockM), q_, p_.q.seq_stride, rows,
                                       static_cast<int>(p_.shape.head_dim), args_.aligned);
    load_rows<kBlockM, kDim, kThreads>(smem_dout_ + stage * kPolicy.tile_bytes(kBlockM), dout_, p_.dout.seq_stride,
                                       rows, static_cast<int>(p_.shape.head_dim_v), args_.aligned);
    q_ += kBlockM * p_.q.seq_stride;
    dout_ += kBlockM * p_.dout.seq_stride;
    const int row = threadIdx.x % kBlockM, which = threadIdx.x / kBlockM;
    if (which < 2) {
      const float* from = static_cast<const float*>(which ? args_.delta : args_.lse) + head_ * p_.shape.seqlen_q;
      const bool valid = row < rows;
      copy_async_4(smem_rows_ + 4 * ((stage * 2 + which) * kBlockM + row), valid ? from + first + row : from, valid);
    }
  }

  __device__ __forceinline__ void step(int block, int stage) {
    const uint32_t q = smem_q_ + stage * kPolicy.tile_bytes(kBlockM);
    const uint32_t dout = smem_dout_ + stage * kPolicy.tile_bytes(kBlockM);
    Scores probs, ds;
    multiply_transposed(probs, smem_k_, q);
    if constexpr (kScored) this->scale_and_add_bias(probs, block);
    this->to_probabilities(probs, block, stage);
    const uint32_t dropped = kScored && p_.dropout.p > 0 ? this->draw(block) : 0;
    accumulate(dv_, probs, dout, dropped);
    multiply_transposed(ds, smem_v_, dout);
    this->differentiate(ds, probs, dropped, block, stage);
    store_ds(ds);
    accumulate(dk_, ds, q, 0);
    __syncthreads();  // dS is there
    add_dq(block);
  }

  // scores[keys, queries] = left[keys, dim] right[queries, dim]^T of this warp's keys, 64 dims at a time: longer sums
  // would lose bits, see SumTf32.
  __device__ __forceinline__ void multiply_transposed(Scores& scores, uint32_t left, uint32_t right) {
    const uint32_t keys = lane_a<kDim>(left) + warp_key_ * TileLayout<kDim>::kRowBytes, queries = lane_b<kDim>(right);
#pragma unroll
    for (int first = 0; first < kDim; first += 64) {
      SumTf32 sums[kQueryTiles];
#pragma unroll
      for (int d = first / 16; d < first / 16 + 4; ++d) {
        const SplitTf32<4> a0 = load_a<kDim>(keys, 0, 2 * d), a1 = load_a<kDim>(keys, 0, 2 * d + 1);
#pragma unroll
        for (int m = 0; m < kQueryTiles; ++m) {
          const SplitTf32<4> b = load_b<kDim>(queries, m * 8, d);
          multiply<0>(sums[m], a0, b);
          multiply<2>(sums[m], a1, b);
        }
      }
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[m][i] = first == 0 ? sums[m][i] : scores[m][i] + sums[m][i];
    }
  }

  // Into a tile [block_m, block_n], keys of eight in the order of load_b_rows.
  __device__ __forceinline__ void store_ds(const Scores& ds) {
    const int lane = threadIdx.x % 32, key = lane / 4, place = key / 2 + key % 2 * 4;
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = m * 8 + lane % 4 * 2 + i % 2, column = warp_key_ + i / 2 * 8 + place;
        store_shared_4(smem_ds_ + TileLayout<kBlockN>::offset(row, column / kChunk) + column % kChunk * 4,
                       __float_as_uint(ds[m][i]));
      }
  }

  // acc[keys, dims] += left[keys, queries] right[queries, dims], without what is dropped
  __device__ __forceinline__ void accumulate(Gradient& acc, const Scores& left, uint32_t right, uint32_t dropped) {
    const uint32_t rows = lane_b_rows<kDim>(right);
#pragma unroll
    for (int d = 0; d < kDims32; ++d) {
      Sums sums;
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m) {
        float x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = kScored && is_dropped(dropped, m, i) ? 0.0f : left[m][i];
        sums.add(to_a(x), load_b_rows<kDim>(rows, m * 8, d));
      }
      sums.add_to(acc[d]);
    }
  }

  // dq[queries, dims] += softmax_scale dS[queries, keys] K[keys, dims]
  __device__ __forceinline__ void add_dq(int block) {
    constexpr int kRowTiles = kPolicy.dq_row_tiles(), kDimWarps = kPolicy.dq_dim_warps();
    static_assert(kRowTiles > 0 && kDimWarps == kDims32 && kQueryTiles == kSumSteps);
    const int warp = threadIdx.x / 32, dims32 = warp % kDimWarps, row_tile = warp / kDimWarps * kRowTiles;
    const uint32_t keys = lane_b_rows<kDim>(smem_k_) + dims32 * 128;
    const uint32_t ds = lane_a<kBlockN>(smem_ds_) + row_tile * 16 * TileLayout<kBlockN>::kRowBytes;
    float acc[kRowTiles][4][4] = {};
#pragma unroll
    for (int first = 0; first < kBlockN / 8; first += kSumSteps) {
      Sums sums[kRowTiles];
#pragma unroll
      for (int n = first; n < first + kSumSteps; ++n) {
        const SplitTf32<8> b = load_b_rows<kDim>(keys, n * 8, 0);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) sums[r].add(load_a<kBlockN>(ds, r * 16, n), b);
      }
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) sums[r].add_to(acc[r]);
    }
    int* turn = nullptr;
    if (args_.turns) {
      turn = args_.turns + head_ * args_.query_blocks + first_query_block(p_.seq, tile_.sequence, kBlockM) + block;
      await_turn(turn, block);
    }
    const float scale = static_cast<float>(p_.softmax_scale);
    const int dim = static_cast<int>(p_.shape.head_dim);
    float* const dq = static_cast<float*>(p_.dq.data) + tile_.heads_offset(p_.dq);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int query = block * kBlockM + (row_tile + r) * 16 + i / 2 * 8 + threadIdx.x % 32 / 4;
        if (query >= tile_.sequence.seqlen_q) continue;
        const auto& sum = acc[r];
        add_4(dq + (tile_.sequence.q_begin + query) * p_.dq.seq_stride, 32 * dims32 + sum_column(i), dim, args_.aligned,
              {sum[0][i] * scale, sum[1][i] * scale, sum[2][i] * scale, sum[3][i] * scale});
      }
    if (turn) {
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) atomicAdd(turn, 1);
    }
  }

  // Key tiles add to a block of queries one after the other. Tiles before this one were launched before it.
  __device__ __forceinline__ void await_turn(int* turn, int block) {
    const int end = min((block + 1) * kBlockM, tile_.sequence.seqlen_q);
    const int mine = tile_.first_key / kBlockN - band_.key_range({block * kBlockM, end}).begin / kBlockN;
    if (threadIdx.x == 0) {
      while (*static_cast<volatile int*>(turn) < mine) __nanosleep(20);
      __threadfence();
    }
    __syncthreads();
  }

  __device__ __forceinline__ void write_keys(const HeadsTensor& tensor, const Gradient& acc, float factor,
                                             int64_t dim) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = key_of(i);
      if (key >= tile_.first_key + tile_.keys) continue;
      float* const row = static_cast<float*>(tensor.data) + tile_.heads_offset(tensor) +
                         (tile_.sequence.k_begin + key) * tensor.seq_stride;
#pragma unroll
      for (int d = 0; d < kDims32; ++d)
        store_4(row, 32 * d + sum_column(i), static_cast<int>(dim), args_.aligned,
                {acc[d][0][i] * factor, acc[d][1][i] * factor, acc[d][2][i] * factor, acc[d][3][i] * factor});
    }
  }
};

template <int kHeadDim, bool kScored>
__global__ void __launch_bounds__(bwd_policy(kHeadDim, kScored).threads(), bwd_policy(kHeadDim, kScored).blocks_per_sm)
    attention_bwd_sm80_fp32(const __grid_constant__ BwdArgs args) {
  constexpr BwdPolicy kPolicy = bwd_policy(kHeadDim, kScored);
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ BwdTile tile;  // read again and again: it would take registers
  const BwdTile found = bwd_tile<kPolicy.block_n()>(args);
  if (threadIdx.x == 0) tile = found;
  __syncthreads();
  if (tile.keys <= 0) return;
  Backward<kPolicy> backward(args, tile, smem);
  backward.run();
}

}  // namespace xformers::cuda::sm80_fp32
