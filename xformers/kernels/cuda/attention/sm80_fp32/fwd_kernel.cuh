// Forward in fp32 on tensor cores (three TF32 products, mma_tf32.cuh), one block per tile of query rows:
//
//   load Q
//   for blocks of keys:  load V | S = Q K^T;  load the next K | bias, mask, online softmax, dropout;  O += P V
//   write out and lse
//
// Each warp owns 16 * row_tiles rows and all keys; a lane holds rows lane / 4 and + 8 of each row tile. Operands are
// split when they reach registers. Shared memory: Q, K, V.
#pragma once

#include "xformers/kernels/cuda/attention/sm80_fp32/fwd_rows.cuh"

namespace xformers::cuda::sm80_fp32 {

template <FwdPolicy kPolicy>
class Forward : ForwardRows<kPolicy> {
  using Rows = ForwardRows<kPolicy>;
  using Rows::args_, Rows::p_, Rows::tile_, Rows::band_, Rows::warp_row_, Rows::acc_o_;
  using Rows::kDim, Rows::kKeys, Rows::kRowTiles, Rows::kKeyTiles, Rows::kDims32, Rows::kScored;
  using Rows::query_of, Rows::head_of;
  using typename Rows::Scores;
  static constexpr int kThreads = kPolicy.threads();

  uint32_t smem_q_, smem_k_, smem_v_;

 public:
  __device__ __forceinline__ Forward(const FwdArgs& args, const FwdTile& tile, uint32_t smem) : Rows(args, tile) {
    smem_q_ = smem;
    smem_k_ = smem_q_ + 4 * kDim * kPolicy.block_m();
    smem_v_ = smem_k_ + 4 * kDim * kKeys;
  }

  __device__ __forceinline__ void run() {
    const Range queries{query_of(tile_.first_row), query_of(tile_.first_row + tile_.rows - 1) + 1};
    const Range keys = band_.key_range(queries);
    const int first = keys.begin / kKeys, last = ceil_div(keys.end, kKeys);  // blocks of keys
    if (first < last) {
      const float *k = lane_key(p_.k, first * kKeys), *v = lane_key(p_.v, first * kKeys);
      load_q();
      load_keys(smem_k_, p_.k, k, first * kKeys, p_.shape.head_dim);
      copy_async_commit();
#pragma unroll 1
      for (int block = first; block < last; ++block) {
        const int key = block * kKeys;
        copy_async_wait<0>();
        __syncthreads();  // K is there; everybody is done with V
        load_keys(smem_v_, p_.v, v, key, p_.shape.head_dim_v);
        copy_async_commit();
        Scores scores;
        multiply_scores(scores);
        copy_async_wait<0>();
        __syncthreads();  // V is there; everybody is done with K
        if (block + 1 < last) {
          load_keys(smem_k_, p_.k, k, key + kKeys, p_.shape.head_dim);
          copy_async_commit();
        }
        if constexpr (kScored) this->scale_and_add_bias(scores, key);
        if (!band_.is_full(queries, {key, key + kKeys})) this->mask(scores, key);
        this->softmax(scores);
        if constexpr (kScored) {
          if (p_.dropout.p > 0) this->drop(scores, key);
        }
        accumulate(scores);
      }
    }
    this->finish();
  }

 private:
  __device__ __forceinline__ void load_q() {
    const float* q = static_cast<const float*>(p_.q.data) + tile_.sequence.batch * p_.q.batch_stride +
                     tile_.group * p_.q.group_stride;
    load_tile<kPolicy.block_m(), kDim, kThreads>(
        smem_q_, tile_.rows, static_cast<int>(p_.shape.head_dim), args_.aligned_q, q, [&](int row) {
          const int at = tile_.first_row + row;
          return q + (tile_.sequence.q_begin + query_of(at)) * p_.q.seq_stride + head_of(at) * p_.q.head_stride;
        });
  }
  // This thread's part of the first of a block's rows.
  __device__ __forceinline__ const float* lane_key(const HeadsTensor& tensor, int first_key) const {
    return thread_part<kDim, kThreads>(static_cast<const float*>(tensor.data) +
                                           tile_.sequence.batch * tensor.batch_stride +
                                           tile_.group * tensor.group_stride + tile_.first_head * tensor.head_stride +
                                           (tile_.sequence.k_begin + first_key) * tensor.seq_stride,
                                       tensor.seq_stride);
  }
  __device__ __forceinline__ void load_keys(uint32_t to, const HeadsTensor& tensor, const float*& lane, int first_key,
                                            int64_t dim) {
    load_rows<kKeys, kDim, kThreads>(to, lane, tensor.seq_stride, tile_.sequence.seqlen_k - first_key,
                                     static_cast<int>(dim), args_.aligned_kv);
    lane += kKeys * tensor.seq_stride;
  }

  // Sums of 64 dims at a time: longer ones would lose bits, see SumTf32.
  __device__ __forceinline__ void multiply_scores(Scores& scores) {
    const uint32_t q = lane_a<kDim>(smem_q_) + warp_row_ * TileLayout<kDim>::kRowBytes, k = lane_b<kDim>(smem_k_);
#pragma unroll
    for (int first = 0; first < kDim; first += 64) {
      SumTf32 sums[kRowTiles][kKeyTiles];
#pragma unroll
      for (int d = first / 16; d < first / 16 + 4; ++d) {
        SplitTf32<4> a[kRowTiles][2];
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
          for (int part = 0; part < 2; ++part) a[r][part] = load_a<kDim>(q, r * 16, 2 * d + part);
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) {
          const SplitTf32<4> b = load_b<kDim>(k, n * 8, d);
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r) multiply<0>(sums[r][n], a[r][0], b), multiply<2>(sums[r][n], a[r][1], b);
        }
      }
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) scores[r][n][i] = first == 0 ? sums[r][n][i] : scores[r][n][i] + sums[r][n][i];
    }
  }

  __device__ __forceinline__ void accumulate(const Scores& probs) {
    const uint32_t v = lane_b_rows<kDim>(smem_v_);
#pragma unroll
    for (int d = 0; d < kDims32; ++d)
#pragma unroll
      for (int first = 0; first < kKeyTiles; first += kSumSteps) {
        Sums sums[kRowTiles];
#pragma unroll
        for (int n = first; n < first + kSumSteps; ++n) {
          const SplitTf32<8> b = load_b_rows<kDim>(v, n * 8, d);
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r) sums[r].add(to_a(probs[r][n]), b);
        }
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) sums[r].add_to(acc_o_[r][d]);
      }
  }
};

// (nvcc's host stub of a kernel can't be a template over a struct, so the policy is made here.)
template <int kHeadDim, bool kScored>
__global__ void __launch_bounds__(fwd_policy(kHeadDim, kScored).threads(), fwd_policy(kHeadDim, kScored).blocks_per_sm)
    attention_fwd_sm80_fp32(const __grid_constant__ FwdArgs args) {
  constexpr FwdPolicy kPolicy = fwd_policy(kHeadDim, kScored);
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ FwdTile tile;  // read again at the end: it would take registers
  const FwdTile found = fwd_tile<kPolicy.block_m()>(args);
  if (threadIdx.x == 0) tile = found;
  __syncthreads();
  if (tile.rows <= 0) return;
  Forward<kPolicy> forward(args, tile, shared_address(smem));
  forward.run();
}

}  // namespace xformers::cuda::sm80_fp32
