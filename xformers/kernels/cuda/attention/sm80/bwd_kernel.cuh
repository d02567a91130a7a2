// Backward on tensor cores (mma.sync), one block per tile of keys of one head:
//
//   load K, V
//   for blocks of queries that see them:
//     load the next Q, dO | S^T = K Q^T,  dP^T = V dO^T | bias, mask, dropout;  P^T, dS^T
//     dV += P^T dO,  dK += dS^T Q,  dq_sum += dS K
//   write dK, dV
//
// Scores are transposed, so that P^T and dS^T are in registers what the products with dO and Q want; only dS passes
// through shared memory for dq. Where few heads leave the GPU idle, several blocks share a tile and part its queries.
// Shared memory: K, V, [stages] Q, [stages] dO, dS^T, (P^T where warps share keys), (bias), [stages] lse and delta.
#pragma once

#include "xformers/kernels/cuda/attention/sm80/bwd_dq.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_loads.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_outputs.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_products.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_scores.cuh"

namespace xformers::cuda::sm80 {

template <class T, BwdPolicy kPolicy>
class Backward {
  using Warp = BwdWarp<kPolicy>;
  using Step = BwdStep<kPolicy>;
  static constexpr int kBlockM = kPolicy.block_m, kBlockN = kPolicy.block_n(), kStages = kPolicy.stages;
  static constexpr int kQueryBytes = kPolicy.tile_bytes(kBlockM), kKeyBytes = kPolicy.tile_bytes(kBlockN);
  static constexpr int kNone = -1;
  static constexpr bool kScored = kPolicy.features == Features::kScored;

  const BwdArgs& args_;
  const AttentionBwdParams& p_;
  const BwdTile& tile_;
  const Warp warp_;
  uint32_t smem_k_, smem_v_, smem_q_, smem_dout_, smem_ds_, smem_p_, smem_bias_, smem_rows_;
  const float* rows_;  // smem_rows_ as a pointer: [stages][lse, delta][block_m]
  typename Warp::Sums acc_dk_ = {}, acc_dv_ = {};

 public:
  __device__ __forceinline__ Backward(const BwdArgs& args, const BwdTile& tile, unsigned char* smem)
      : args_(args), p_(args.p), tile_(tile) {
    smem_k_ = shared_address(smem);
    smem_v_ = smem_k_ + kKeyBytes;
    smem_q_ = smem_v_ + kKeyBytes;
    smem_dout_ = smem_q_ + kStages * kQueryBytes;
    smem_ds_ = smem_dout_ + kStages * kQueryBytes;
    smem_p_ = smem_ds_ + kPolicy.scores_bytes();
    smem_bias_ = smem_ds_ + (kPolicy.score_tiles() - 1) * kPolicy.scores_bytes();
    smem_rows_ = smem_ds_ + kPolicy.score_tiles() * kPolicy.scores_bytes();
    rows_ = reinterpret_cast<const float*>(smem + (smem_rows_ - smem_k_));
  }

  __device__ __forceinline__ void run(int split) {
    int block = down() ? tile_.last_block - 1 : tile_.first_block;
    int left = tile_.last_block - tile_.first_block;
    if (left > 0) {
      load_keys(smem_k_, p_.k, p_.shape.head_dim);
      load_keys(smem_v_, p_.v, p_.shape.head_dim_v);
      load_queries(block, 0);
      if (has_bias()) load_bias<T, kPolicy>(smem_bias_, p_.bias, tile_, block * kBlockM);
      copy_async_commit();
      int stage = 0;
#pragma unroll 1
      for (; left > 0; --left) {
        const int next = down() ? block - 1 : block + 1;
        copy_async_wait<0>();
        __syncthreads();  // this block is there; everybody is done with the one before
        if (kStages > 1 && left > 1) load_queries(next, stage ^ 1);
        copy_async_commit();
        step(block, stage, left > 1 ? next : kNone);
        if (kStages > 1) stage ^= 1;
        block = next;
      }
      if (args_.turns) end_turn(tile_.dq_block + tile_.first_block);
    }
    if (args_.splits > 1) {
      float4* const to = partial_sums<kPolicy>(args_, tile_, split);
      store_partial<kPolicy>(to, acc_dk_);
      store_partial<kPolicy>(to + Warp::kKeyTiles * Warp::kDimTiles * Warp::kThreads, acc_dv_);
    } else {
      __syncthreads();  // everybody is done with K
      stage_keys<T>(smem_k_, warp_, acc_dk_, static_cast<float>(p_.softmax_scale));
      stage_keys<T>(smem_v_, warp_, acc_dv_, static_cast<float>(args_.kept));
      __syncthreads();
      write_keys<T, kPolicy>(args_, tile_, p_.dk, smem_k_, p_.shape.head_dim);
      write_keys<T, kPolicy>(args_, tile_, p_.dv, smem_v_, p_.shape.head_dim_v);
    }
  }

 private:
  // Where turns are taken, from the last queries to the first: under a causal mask a tile would else wait for all of
  // those before it, which have more to do.
  __device__ __forceinline__ bool down() const { return args_.turns != nullptr; }
  __device__ __forceinline__ bool has_bias() const { return kScored && p_.bias.data; }
  __device__ __forceinline__ void load_keys(uint32_t to, const HeadsTensor& tensor, int64_t dim) {
    const int64_t first = tile_.sequence.k_begin + tile_.first_key;
    const T* from = static_cast<const T*>(tensor.data) + heads_offset(tensor, tile_) + first * tensor.seq_stride;
    load_heads<kBlockN, T, kPolicy>(to, args_, from, tensor.seq_stride, tile_.keys, dim);
  }
  // Rows past the sequence are zeros everywhere: they add nothing.
  __device__ __forceinline__ void load_queries(int block, int stage) {
    const int first = block * kBlockM, rows = tile_.sequence.seqlen_q - first;
    const auto load = [&](uint32_t to, const HeadsTensor& tensor, int64_t at, int64_t dim) {
      const T* from = static_cast<const T*>(tensor.data) + at + first * tensor.seq_stride;
      load_heads<kBlockM, T, kPolicy>(to + stage * kQueryBytes, args_, from, tensor.seq_stride, rows, dim);
    };
    load(smem_q_, p_.q, tile_.q, p_.shape.head_dim);
    load(smem_dout_, p_.dout, tile_.dout, p_.shape.head_dim_v);
    load_statistics<kPolicy>(smem_rows_ + stage * 2 * 4 * kBlockM, args_, tile_.row + first, rows);
  }
  // What is read once per step arrives while the last products run.
  __device__ __forceinline__ void load_next(int block) {
    if (kStages == 1) load_queries(block, 0);
    if (has_bias()) load_bias<T, kPolicy>(smem_bias_, p_.bias, tile_, block * kBlockM);
    copy_async_commit();
  }

  __device__ __forceinline__ void step(int block, int stage, int next) {
    const uint32_t q = smem_q_ + stage * kQueryBytes, dout = smem_dout_ + stage * kQueryBytes;
    const int first_query = block * kBlockM, first_key = tile_.first_key;
    const Band& band = tile_.band;
    const bool full = band.is_full({first_query, first_query + kBlockM}, {first_key, first_key + kBlockN});
    const Step step{args_, tile_, warp_, band, first_query, full, rows_ + stage * 2 * kBlockM, smem_bias_};
    typename Warp::Scores scores = {}, dprobs = {};
    KeptScores kept;
    multiply_transposed<T>(scores, warp_, smem_k_, q);
    if (drops()) {
      draw_beside(dprobs, kept, step, dout);
    } else {
      multiply_transposed<T>(dprobs, warp_, smem_v_, dout);
    }
    differentiate(step, kept, scores, dprobs);
    typename Warp::Packed p, ds;
    pack_all<T>(p, warp_, scores);
    pack_all<T>(ds, warp_, dprobs);
    store_scores(smem_ds_, warp_, ds);
    if constexpr (kPolicy.sharing == 1) {
      accumulate<T>(acc_dv_, warp_, p, dout);
      accumulate<T>(acc_dk_, warp_, ds, q);
      sync_in_turn(step, block);  // dS is there, everybody has read the bias
    } else {
      store_scores(smem_p_, warp_, p);
      sync_in_turn(step, block);  // P and dS are there, everybody has read the bias
      accumulate<T>(acc_dv_, warp_, smem_p_, dout);
      accumulate<T>(acc_dk_, warp_, smem_ds_, q);
    }
    if (next != kNone && (kStages == 1 || kScored)) {
      if (kStages == 1) __syncthreads();  // everybody is done with Q and dO
      load_next(next);
    }
    add_dq<T>(step, smem_ds_, smem_k_, tile_.dq_block + block);
  }

  __device__ __forceinline__ bool drops() const { return kPolicy.features != Features::kPlain && p_.dropout.p > 0; }
  // dP, and between its products what dropout keeps: Philox runs where the tensor cores leave time.
  __device__ __forceinline__ void draw_beside(typename Warp::Scores& dprobs, KeptScores& kept, const Step& step,
                                              uint32_t dout) {
    constexpr int kSlices = Warp::kDim / 16, kTiles = Warp::kQueryTiles;
    multiply_transposed<T>(dprobs, warp_, smem_v_, dout, [&](int d) {
#pragma unroll
      for (int m = d * kTiles / kSlices; m < (d + 1) * kTiles / kSlices; ++m)
        kept.draw(m, tile_.dropout, tile_.first_key + warp_.key, step.first_query + warp_.query);
    });
    kept.exchange();
  }

  __device__ __forceinline__ void differentiate(const Step& step, const KeptScores& kept, typename Warp::Scores& scores,
                                                typename Warp::Scores& dprobs) {
    if constexpr (kPolicy.features == Features::kPlain) {
      sm80::differentiate<false, false, T>(step, kept, scores, dprobs);
    } else if (!drops()) {
      sm80::differentiate<true, false, T>(step, kept, scores, dprobs);
    } else if (kScored && !p_.bias.data) {
      sm80::differentiate<false, true, T>(step, kept, scores, dprobs);
    } else {
      sm80::differentiate<true, true, T>(step, kept, scores, dprobs);
    }
  }

  // __syncthreads(). Where turns are taken, this step's has come then, and that of the step before ends: what it added
  // has had the time of these products to arrive.
  __device__ __forceinline__ void sync_in_turn(const Step& step, int block) {
    if (!args_.turns) return __syncthreads();
    int* const turn = args_.turns + tile_.dq_block + block;
    __threadfence();
    if (threadIdx.x == 0) await_turn(step, turn);
    __syncthreads();
    if (threadIdx.x == 0 && block + 1 < tile_.last_block) atomicAdd(turn + 1, 1);
  }
  __device__ __forceinline__ void end_turn(int64_t block) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(args_.turns + block, 1);
  }
};

template <class T, int kHeadDim, Features kFeatures>
__global__ void __launch_bounds__(bwd_policy(kHeadDim, kFeatures, kLargeSmem).threads(),
                                  bwd_policy(kHeadDim, kFeatures, kLargeSmem).blocks_per_sm())
    attention_bwd_sm80(const __grid_constant__ BwdArgs args) {
  constexpr BwdPolicy kPolicy = bwd_policy(kHeadDim, kFeatures, kLargeSmem);
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ BwdTile tile;  // not in registers
  const BlockPlace place = block_place(args);
  BwdTile found = bwd_tile_at<kPolicy.block_n()>(args, place.head_of_all, place.tile);
  if (found.keys <= 0) return;
  find_queries<kPolicy.block_m>(args, place.split, found);
  if (threadIdx.x == 0) tile = found;
  __syncthreads();
  Backward<T, kPolicy> backward(args, tile, smem);
  backward.run(place.split);
}

}  // namespace xformers::cuda::sm80
