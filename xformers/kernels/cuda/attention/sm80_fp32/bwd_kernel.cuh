// Backward in fp32 on tensor cores (three products of halves, mma_half2.cuh), one block per tile of keys of one head:
//
//   load K, V and split them
//   for blocks of queries that see them:
//     split Q, dO;  load the next | S^T = K Q^T | bias, mask, dropout;  P^T | dV += P^T dO
//     dP^T = V dO^T | dS^T | dK += dS^T Q,  dq += scale dS K
//   write dK, dV
//
// Scores are transposed, so that P^T and dS^T are in registers what the products with dO and Q want; only dS passes
// through shared memory for dq. A lane holds keys lane / 4 and + 8 of its warp's 16. dq, zeros before, is summed in
// global memory by all key tiles: in any order, or, where args.turns is given, in the order of the tiles.
// Shared memory: K, V, [stages] Q, [stages] dO, dS, and the struct Rows.
//
// Halves want numbers of known size (halves.cuh): each warp scales its P and dS of a step, and sums over them are
// scaled back.
#pragma once

#include "xformers/kernels/cuda/attention/epilogue.cuh"
#include "xformers/kernels/cuda/attention/key_walk.cuh"
#include "xformers/kernels/cuda/attention/sm80_fp32/bwd_products.cuh"
#include "xformers/kernels/cuda/attention/turns.cuh"

namespace xformers::cuda::sm80_fp32 {

template <BwdPolicy kPolicy>
class Backward : BackwardProducts<kPolicy> {
  using Base = BackwardProducts<kPolicy>;
  using Base::args_, Base::p_, Base::place_, Base::tile_, Base::band_, Base::warp_key_, Base::rows_;
  using Base::kBlockM, Base::kBlockN, Base::kQueryTiles, Base::kScored;
  using Base::kDim, Base::kSteps, Base::accumulate, Base::multiply_transposed, Base::to_operands;
  using Base::key_of, Base::is_dropped;
  using typename Base::Gradient, typename Base::Scores;
  static constexpr int kStages = kPolicy.stages, kThreads = kPolicy.threads();
  using KeyTile = HalvesTile<kBlockN, kDim, kThreads>;
  using QueryTile = HalvesTile<kBlockM, kDim, kThreads>;

  uint32_t smem_k_, smem_v_, smem_q_, smem_dout_, smem_ds_, smem_rows_;
  QueryTile q_tile_, dout_tile_;
  float dout_scale_ = kUsualScale;
  Gradient dk_ = {}, dv_ = {};  // dk: in units of softmax_scale / kUsualScale

 public:
  __device__ __forceinline__ Backward(const BwdArgs& args, const BwdPlace& place, unsigned char* smem,
                                      typename Base::Blocks& blocks)
      : Base(args, place, reinterpret_cast<typename Base::Rows*>(smem + kPolicy.rows_offset()), blocks) {
    smem_k_ = shared_address(smem);
    smem_v_ = smem_k_ + kPolicy.tile_bytes(kBlockN);
    smem_q_ = smem_v_ + kPolicy.tile_bytes(kBlockN);
    smem_dout_ = smem_q_ + kStages * kPolicy.tile_bytes(kBlockM);
    smem_ds_ = smem_dout_ + kStages * kPolicy.tile_bytes(kBlockM);
    smem_rows_ = smem_k_ + kPolicy.rows_offset();
  }

  __device__ __forceinline__ void run() {
    int first = place_.queries.begin / kBlockM;  // block of queries
    if (this->hides()) first = this->block_of_turn(0);
    if (!place_.queries.empty() && (!this->hides() || is_block(first))) {
      load_keys(smem_k_, p_.k, p_.shape.head_dim);
      load_keys(smem_v_, p_.v, p_.shape.head_dim_v);
      load_queries(first, 0);
      copy_async_commit();
      copy_async_wait<0>();
      bool unusual_keys = KeyTile().split(smem_k_, rows_->k);
      unusual_keys |= KeyTile().split(smem_v_, rows_->v);
      unusual_keys = __syncthreads_or(unusual_keys);
      int stage = 0;
#pragma unroll 1
      for (int block = first, next; is_block(block); block = next) {
        copy_async_wait<0>();
        const bool unusual = split_queries(stage) || unusual_keys;  // everybody is done with the block before
        next = block + 1;
        if (this->hides()) next = this->next_turn();
        if (kStages > 1 && is_block(next)) load_queries(next, stage ^ 1);
        copy_async_commit();
        step(block, stage, unusual);
        if (kStages > 1) {
          stage ^= 1;
        } else if (is_block(next)) {
          __syncthreads();
          load_queries(next, 0);
          copy_async_commit();
        }
      }
    }
    if (kScored && place_.slope_part) store_slope_part();
    write_keys(p_.dk, dk_, static_cast<float>(p_.softmax_scale) / kUsualScale, p_.shape.head_dim);
    write_keys(p_.dv, dv_, static_cast<float>(args_.kept), p_.shape.head_dim_v);
  }

 private:
  // Of this tile; every block of keys has its place.
  __device__ __forceinline__ void store_slope_part() {
    float sum = sum_of_warp(this->slope_sum_);
    if (threadIdx.x % 32 == 0) rows_->largest_dout[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    double all = 0;
    for (const float of_warp : rows_->largest_dout) all += static_cast<double>(of_warp);
    *place_.slope_part = {all, tile_.sequence.index};
  }
  __device__ __forceinline__ bool is_block(int block) const { return block * kBlockM < place_.queries.end; }

  // `first`: the first of `rows` rows.
  template <int kRows>
  __device__ __forceinline__ void load(uint32_t to, const float* first, int64_t stride, int rows, int64_t dim) {
    load_rows<kRows, kDim, kThreads>(to, thread_part<kDim, kThreads>(first, stride), stride, rows,
                                     static_cast<int>(dim), args_.aligned);
  }
  __device__ __forceinline__ void load_keys(uint32_t to, const HeadsTensor& tensor, int64_t dim) {
    const float* first = first_row(tensor, tile_, tile_.sequence.k_begin + tile_.first);
    load<kBlockN>(to, first, tensor.seq_stride, tile_.rows, dim);
  }
  // Rows past the sequence are zeros everywhere: they add nothing.
  __device__ __forceinline__ void load_queries(int block, int stage) {
    const int query = block * kBlockM, rows = tile_.sequence.seqlen_q - query;
    const int64_t first = tile_.sequence.q_begin + query;
    load<kBlockM>(smem_q_ + stage * kPolicy.tile_bytes(kBlockM), place_.q + query * p_.q.seq_stride, p_.q.seq_stride,
                  rows, p_.shape.head_dim);
    load<kBlockM>(smem_dout_ + stage * kPolicy.tile_bytes(kBlockM), place_.dout + query * p_.dout.seq_stride,
                  p_.dout.seq_stride, rows, p_.shape.head_dim_v);
    const int row = threadIdx.x % kBlockM, which = threadIdx.x / kBlockM;
    if (which < 2) {
      const float* from = static_cast<const float*>(which ? args_.delta : args_.lse) + place_.head * p_.shape.seqlen_q;
      const bool valid = row < rows;
      copy_async_4(smem_rows_ + 4 * ((stage * 2 + which) * kBlockM + row), valid ? from + first + row : from, valid);
    }
  }

  // Returns whether there are ratios other than 1. The scale of dO follows its size, which may be anything.
  __device__ __forceinline__ bool split_queries(int stage) {
    bool unusual = q_tile_.split(smem_q_ + stage * kPolicy.tile_bytes(kBlockM), rows_->q[stage]);
    unusual |= dout_tile_.split(smem_dout_ + stage * kPolicy.tile_bytes(kBlockM), rows_->dout[stage], dout_scale_);
    if (threadIdx.x % 32 == 0) rows_->largest_dout[threadIdx.x / 32] = dout_tile_.largest;
    unusual = __syncthreads_or(unusual);
    this->dp_scale_ = inverse_power(dout_scale_) / kUsualScale;
    this->dout_unit_ = inverse_power(dout_scale_);
    if (unusual) {
      float largest = 0;
#pragma unroll
      for (int warp = 0; warp < kThreads / 32; ++warp) largest = fmaxf(largest, rows_->largest_dout[warp]);
      if (largest > 0) dout_scale_ = scale_to(largest, 11);
    }
    return unusual;
  }

  __device__ __forceinline__ void step(int block, int stage, bool unusual) {
    const uint32_t q = smem_q_ + stage * kPolicy.tile_bytes(kBlockM);
    const uint32_t dout = smem_dout_ + stage * kPolicy.tile_bytes(kBlockM);
    Scores probs, ds, cap_slopes;
    multiply_transposed(probs, smem_k_, q);
    if (unusual) this->scale_keys(probs, rows_->k), this->scale_queries(probs, rows_->q[stage]);
    this->modify_scores(probs, cap_slopes, block);
    this->to_probabilities(probs, block, stage);
    const uint32_t dropped = kScored && p_.dropout.p > 0 ? this->draw(block) : 0;
    {
      Scores left;
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // NaN stays NaN where it is dropped
          left[0][m][i] = kScored && is_dropped(dropped, m, i) ? 0.0f * probs[0][m][i] : probs[0][m][i];
        }
      if (unusual) this->scale_queries(left, rows_->dout[stage]);
      float units[2];
      this->suit_keys(left, units);
      units[0] *= this->dout_unit_, units[1] *= this->dout_unit_;
      Halves a[kSteps];
      to_operands(a, left);
      accumulate(dv_, a, dout, units);
    }
    multiply_transposed(ds, smem_v_, dout);
    if (unusual) this->scale_keys(ds, rows_->v), this->scale_queries(ds, rows_->dout[stage]);
    this->differentiate(ds, probs, cap_slopes, dropped, block, stage);
    Halves a[kSteps];
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) probs[0][m][i] = ds[0][m][i];
    if (unusual) this->scale_keys(probs, rows_->k), this->scale_queries(ds, rows_->q[stage]);
    this->suit_queries(probs, unusual);
    to_operands(a, probs);
    store_ds(a);
    float units[2];
    this->suit_keys(ds, units);
    to_operands(a, ds);
    accumulate(dk_, a, q, units);
    __syncthreads();  // dS is there
    add_dq(block);
  }

  // Into a tile [block_n, block_m] of halves, big ones first.
  __device__ __forceinline__ void store_ds(const Halves (&ds)[kSteps]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = warp_key_ + lane / 4 + i % 2 * 8, chunk = 2 * k + i / 2;
        const uint32_t at = smem_ds_ + lane % 4 * 4;
        store_shared_4(at + TileLayout<kBlockM>::offset(row, chunk), ds[k].big[i]);
        store_shared_4(at + TileLayout<kBlockM>::offset(row, chunk + kBlockM / 8), ds[k].small[i]);
      }
  }

  // dq[queries, dims] += softmax_scale dS[queries, keys] K[keys, dims]
  __device__ __forceinline__ void add_dq(int block) {
    constexpr int kRowTiles = kPolicy.dq_row_tiles(), kDimWarps = kPolicy.dq_dim_warps();
    static_assert(kRowTiles > 0 && kDimWarps == kDim / 32);
    const int warp = threadIdx.x / 32, dims32 = warp % kDimWarps, row_tile = warp / kDimWarps * kRowTiles;
    const uint32_t keys = advance<kDim>(lane_a<kDim>(smem_k_), 0, dims32 * 4);
    const uint32_t ds = advance<kBlockM>(lane_b<kBlockM>(smem_ds_), 0, row_tile * 2);
    float acc[kRowTiles][4][4] = {};
#pragma unroll 1
    for (int n = 0; n < kBlockN; n += 16) {
      Halves a[kRowTiles];
      Halves b[2];
      float sums[kRowTiles][4][4] = {};
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        load_matrices_transposed(a[r].big, advance<kBlockM>(ds, n, 2 * r));
        load_matrices_transposed(a[r].small, advance<kBlockM>(ds, n, 2 * r + kBlockM / 8));
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) b[j] = load_halves_transposed<kDim>(keys, n, j);
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          mma_halves(sums[r][j], a[r].small, b[j / 2].big[j % 2 * 2], b[j / 2].big[j % 2 * 2 + 1]);
        }
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          mma_halves(sums[r][j], a[r].big, b[j / 2].small[j % 2 * 2], b[j / 2].small[j % 2 * 2 + 1]);
        }
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          mma_halves(sums[r][j], a[r].big, b[j / 2].big[j % 2 * 2], b[j / 2].big[j % 2 * 2 + 1]);
        }
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float unit = rows_->ds_units[n / 16][(row_tile + r) * 16 + half * 8 + threadIdx.x % 32 / 4];
#pragma unroll
          for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int i = half * 2; i < half * 2 + 2; ++i) acc[r][j][i] = fmaf(sums[r][j][i], unit, acc[r][j][i]);
        }
    }
    int* turn = nullptr;
    if (args_.turns) {
      turn =
          args_.turns + place_.head * args_.query_blocks + first_query_block(p_.seq, tile_.sequence, kBlockM) + block;
      if (threadIdx.x == 0) {
        const Range queries{block * kBlockM, min((block + 1) * kBlockM, tile_.sequence.seqlen_q)};
        await_turn(turn, turn_of(band_, queries, tile_.first, kBlockN));
      }
      __syncthreads();
    }
    const float scale = static_cast<float>(p_.softmax_scale) / kUsualScale;
    const int dim = static_cast<int>(p_.shape.head_dim);
    float* const dq = static_cast<float*>(p_.dq.data) + tile_.offset(p_.dq);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int query = block * kBlockM + (row_tile + r) * 16 + half * 8 + threadIdx.x % 32 / 4;
        if (query >= tile_.sequence.seqlen_q) continue;
        float* const row = dq + (tile_.sequence.q_begin + query) * p_.dq.seq_stride;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          add_2(row, 32 * dims32 + 8 * j + threadIdx.x % 4 * 2, dim, args_.aligned,
                {acc[r][j][half * 2] * scale, acc[r][j][half * 2 + 1] * scale});
        }
      }
    if (turn) {
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) atomicAdd(turn, 1);
    }
  }

  __device__ __forceinline__ void write_keys(const HeadsTensor& tensor, const Gradient& acc, float factor,
                                             int64_t dim) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = key_of(2 * half);
      if (key >= tile_.first + tile_.rows) continue;
      float* const row =
          static_cast<float*>(tensor.data) + tile_.offset(tensor) + (tile_.sequence.k_begin + key) * tensor.seq_stride;
#pragma unroll
      for (int d = 0; d < kDim / 8; ++d) {
        store_pair(row, 8 * d + threadIdx.x % 4 * 2, static_cast<int>(dim), acc[d][2 * half] * factor,
                   acc[d][2 * half + 1] * factor, args_.aligned);
      }
    }
  }
};

template <int kHeadDim, bool kScored>
__global__ void __launch_bounds__(bwd_policy(kHeadDim, kScored).threads(), bwd_policy(kHeadDim, kScored).blocks_per_sm)
    attention_bwd_sm80_fp32(const __grid_constant__ BwdArgs args) {
  constexpr BwdPolicy kPolicy = bwd_policy(kHeadDim, kScored);
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ BwdPlace place;
  const LaunchPlace at = launch_place(args.tiles, args.heads_at_once);
  const HeadTile tile = head_tile<RowsOf::kKeys>(args.p.shape, args.p.seq, at.head, at.tile, kPolicy.block_n());
  if (threadIdx.x == 0) {
    place = bwd_place(args, tile);
    if (args.slope_parts) {
      place.slope_part = args.slope_parts + at.head * args.slope_parts_per_head + at.tile;
      if (tile.rows <= 0) *place.slope_part = {};
    }
  }
  if (tile.rows <= 0) return;
  __syncthreads();
  __shared__ typename BackwardScores<kPolicy>::Blocks blocks;
  if constexpr (kScored) {
    if (args.p.blocks.present()) {
      if (threadIdx.x < 32) {
        blocks.begin(args.p.blocks, static_cast<int>(tile.sequence.batch), tile.group, tile.head, tile.first,
                     tile.first + tile.rows, blocks_with(place.queries, kPolicy.block_m));
      }
      __syncthreads();
    }
  }
  Backward<kPolicy> backward(args, place, smem, blocks);
  backward.run();
}

}  // namespace xformers::cuda::sm80_fp32
