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
// With one stage, the next Q is loaded when dK has used this one, and the next dO when dV has. `behind`: half of the
// warps add dq of the step before ahead of this step's scores, the others after them, so that one half's exponentials
// run beside the other's products. Shared memory: K, V, [stages] Q, [stages] dO, [ds_tiles] dS^T, (P^T where warps
// share keys), ([stages] bias), [stages] lse and delta.
#pragma once

#include <type_traits>

#include "xformers/kernels/cuda/attention/sm80/bwd_bias_gradient.cuh"
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
  static constexpr bool kScored = kPolicy.features == Features::kScored;
  static constexpr int kDqParts = kBlockM / kPolicy.dq_rows();

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
    smem_p_ = smem_ds_ + kPolicy.ds_tiles() * kPolicy.scores_bytes();
    smem_bias_ = smem_ds_ + kPolicy.score_tiles() * kPolicy.scores_bytes();
    smem_rows_ = smem_bias_ + kPolicy.bias_bytes();
    rows_ = reinterpret_cast<const float*>(smem + (smem_rows_ - smem_k_));
  }

  __device__ __forceinline__ void run() {
    int block = down() ? tile_.last_block - 1 : tile_.first_block;
    if (is_mine(block)) {
      load_keys(smem_k_, p_.k, p_.shape.head_dim);
      load_q(block, 0);
      copy_async_commit();
      load_keys(smem_v_, p_.v, p_.shape.head_dim_v);
      load_dout(block, 0);
      copy_async_commit();
      int stage = 0;
#pragma unroll 1
      while (is_mine(block)) {
        const int next = down() ? block - 1 : block + 1;
        copy_async_wait<kStages == 1 ? 1 : 0>();
        __syncthreads();  // this block (one stage: its Q) is there; everybody is done with the one before
        if (kStages > 1) {
          if (is_mine(next)) load_q(next, stage ^ 1), load_dout(next, stage ^ 1);
          copy_async_commit();
        }
        step(block, stage, next);
        if (kStages > 1) stage ^= 1;
        block = next;
      }
      if (kPolicy.behind) add_dq_behind(block, stage);
      if (args_.turns) end_turn(tile_.dq_block + tile_.first_block * kDqParts);
    }
    __threadfence();  // before tile_is_done()
    __syncthreads();
    tile_is_done(args_, tile_);
    if (args_.splits > 1) {
      float4* const to = partial_sums<kPolicy>(args_, tile_, tile_.split);
      store_partial<kPolicy>(to, acc_dk_);
      store_partial<kPolicy>(to + Warp::kKeyTiles * Warp::kDimTiles * Warp::kThreads, acc_dv_);
    } else {
      write_keys<T>(args_, tile_, p_.dk, p_.shape.head_dim, warp_, acc_dk_, static_cast<float>(p_.softmax_scale));
      write_keys<T>(args_, tile_, p_.dv, p_.shape.head_dim_v, warp_, acc_dv_, 1.0f);
    }
  }

 private:
  // Where turns are taken, from the last queries to the first: under a causal mask a tile would else wait for all of
  // those before it, which have more to do.
  __device__ __forceinline__ bool down() const { return args_.turns != nullptr; }
  __device__ __forceinline__ bool is_mine(int block) const {
    return block >= tile_.first_block && block < tile_.last_block;
  }
  __device__ __forceinline__ bool has_bias() const { return kScored && p_.mods.bias.data; }
  __device__ __forceinline__ void load_keys(uint32_t to, const HeadsTensor& tensor, int64_t dim) {
    const int64_t first = tile_.sequence.k_begin + tile_.first_key;
    const T* from = static_cast<const T*>(tensor.data) + heads_offset(tensor, tile_) + first * tensor.seq_stride;
    load_heads<kBlockN, T, kPolicy>(to, args_, from, tensor.seq_stride, tile_.keys, dim);
  }
  // Rows past the sequence are zeros everywhere: they add nothing.
  __device__ __forceinline__ void load_queries(uint32_t to, const HeadsTensor& tensor, int64_t at, int64_t dim,
                                               int block) {
    const int first = block * kBlockM;
    const T* from = static_cast<const T*>(tensor.data) + at + first * tensor.seq_stride;
    load_heads<kBlockM, T, kPolicy>(to, args_, from, tensor.seq_stride, tile_.sequence.seqlen_q - first, dim);
  }
  __device__ __forceinline__ void load_q(int block, int stage) {  // and what else belongs to these queries
    const int first = block * kBlockM;
    load_queries(smem_q_ + stage * kQueryBytes, p_.q, tile_.q, p_.shape.head_dim, block);
    load_statistics<kPolicy>(smem_rows_ + stage * 2 * 4 * kBlockM, args_, tile_.row + first,
                             tile_.sequence.seqlen_q - first);
    if (has_bias()) load_bias<T, kPolicy>(bias_of(stage), p_.mods.bias, tile_, first);
  }
  __device__ __forceinline__ uint32_t bias_of(int stage) const { return smem_bias_ + stage * kPolicy.scores_bytes(); }
  __device__ __forceinline__ void load_dout(int block, int stage) {
    load_queries(smem_dout_ + stage * kQueryBytes, p_.dout, tile_.dout, p_.shape.head_dim_v, block);
  }

  __device__ __forceinline__ void step(int block, int stage, int next) {
    const uint32_t q = smem_q_ + stage * kQueryBytes, dout = smem_dout_ + stage * kQueryBytes;
    const int first_query = block * kBlockM;
    const Band& band = tile_.band;
    const Step step{args_, tile_, warp_, band, first_query, rows_ + stage * 2 * kBlockM, bias_of(stage)};
    const uint32_t smem_ds = ds_of(stage);
    const bool early = args_.turns || threadIdx.x < kPolicy.threads() / 2;
    if (kPolicy.behind && early) add_dq_behind(block, stage);
    typename Warp::Scores scores = {}, dprobs = {};
    if constexpr (kStages > 1) {
      with_features([&](auto bias, auto drops) {
        multiply_transposed<T>(scores, warp_, smem_k_, q);
        multiply_and_differentiate<bias.value, drops.value>(dprobs, scores, step, dout);
      });
    } else {
      multiply_transposed<T>(scores, warp_, smem_k_, q);
      copy_async_wait<0>();
      __syncthreads();  // dO is there
      with_features([&](auto bias, auto drops) {
        multiply_and_differentiate<bias.value, drops.value>(dprobs, scores, step, dout);
      });
    }
    typename Warp::Packed p, ds;
    pack_all<T>(p, warp_, scores);
    pack_all<T>(ds, warp_, dprobs);
    store_scores(smem_ds, warp_, ds);
    if constexpr (kPolicy.sharing == 1) {
      accumulate<T>(acc_dv_, warp_, p, dout);
      accumulate<T>(acc_dk_, warp_, ds, q);
      sync_in_turn(step, block);  // dS is there
    } else {
      store_scores(smem_p_, warp_, p);
      if (kPolicy.behind && !early) add_dq_behind(block, stage);
      sync_in_turn(step, block);  // P and dS are there
      accumulate<T>(acc_dk_, warp_, smem_ds, q);
      if (kStages == 1) {
        __syncthreads();  // everybody is done with Q
        if (is_mine(next)) load_q(next, 0);
        copy_async_commit();
      }
      accumulate<T>(acc_dv_, warp_, smem_p_, dout);
      if (kStages == 1) {
        __syncthreads();  // everybody is done with dO
        if (is_mine(next)) load_dout(next, 0);
        copy_async_commit();
      }
    }
    if (!kPolicy.behind) add_dq(block, smem_ds);
  }
  __device__ __forceinline__ uint32_t ds_of(int stage) const {
    return smem_ds_ + (kPolicy.behind ? stage * kPolicy.scores_bytes() : 0);
  }
  // And the gradient of the bias, of the same dS.
  __device__ __forceinline__ void add_dq(int block, uint32_t ds) {
    if constexpr (kScored) {
      if (p_.dbias.data) store_dbias<T, kPolicy>(args_, tile_, block * kBlockM, ds);
    }
#pragma unroll 1
    for (int part = 0; part < kDqParts; ++part) {
      if (block * kBlockM + part * kPolicy.dq_rows() < tile_.sequence.seqlen_q)
        sm80::add_dq<T, kPolicy>(args_, part, ds, smem_k_, tile_.dq_block + block * kDqParts + part);
    }
  }
  // Of the step before this one.
  __device__ __forceinline__ void add_dq_behind(int block, int stage) {
    const int before = down() ? block + 1 : block - 1;
    if (is_mine(before)) add_dq(before, ds_of(stage ^ 1));
  }

  // fn(bias, drops): what this call asks for, as constants. One branch around both products: these then overlap.
  template <class Fn>
  __device__ __forceinline__ void with_features(const Fn& fn) {
    constexpr std::bool_constant<kPolicy.features != Features::kPlain> kMaybe;
    constexpr std::false_type kNo;
    if (kPolicy.features == Features::kPlain || !(p_.dropout.p > 0)) {
      fn(kMaybe, kNo);
    } else if (kScored && !has_bias()) {
      fn(kNo, kMaybe);
    } else {
      fn(kMaybe, kMaybe);
    }
  }
  // dP, and between the slices of this product scores -> P; then what dropout keeps, and dS.
  template <bool kBias, bool kDrops>
  __device__ __forceinline__ void multiply_and_differentiate(typename Warp::Scores& dprobs,
                                                             typename Warp::Scores& scores, const Step& step,
                                                             uint32_t dout) {
    constexpr bool kLate = kPolicy.features == Features::kGeneral;  // bias elements are read one by one
    constexpr int kSlices = Warp::kDim / 16, kPairs = Warp::kQueryTiles / 2;
    multiply_transposed<T>(dprobs, warp_, smem_v_, dout, [&](int d) {
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        if (d == (kLate ? kSlices - 1 : pair * kSlices / kPairs)) exponentiate<kBias, T>(step, scores, 2 * pair);
      }
    });
    if (!step.is_full()) mask(step, scores);
    KeptScores<Warp::kQueryTiles> kept;
    if constexpr (kDrops)
      kept.draw(tile_.dropout, args_.drop_rule, tile_.first_key + warp_.key, step.first_query + warp_.query);
    differentiate<kDrops, T>(step, kept, scores, dprobs);
  }

  // __syncthreads(). Where turns are taken, this step's has come then, and that of the step before ends: what it added
  // has had the time of these products to arrive.
  __device__ __forceinline__ void sync_in_turn(const Step& step, int block) {
    if (!args_.turns) return __syncthreads();
    int* const turn = args_.turns + tile_.dq_block + block * kDqParts;
    __threadfence();
    if (threadIdx.x == 0) await_turn(step, turn);
    __syncthreads();
    if (threadIdx.x == 0 && block + 1 < tile_.last_block) atomicAdd(turn + kDqParts, 1);
  }
  __device__ __forceinline__ void end_turn(int64_t block) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(args_.turns + block, 1);
  }
};

template <class T, int kHeadDim, int kFeatures>
__global__ void __launch_bounds__(bwd_policy(kHeadDim, Features::of(kFeatures), kLargeSmem).threads(),
                                  bwd_policy(kHeadDim, Features::of(kFeatures), kLargeSmem).blocks_per_sm())
    attention_bwd_sm80(const __grid_constant__ BwdArgs args) {
  constexpr BwdPolicy kPolicy = bwd_policy(kHeadDim, Features::of(kFeatures), kLargeSmem);
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ BwdTile tile;  // not in registers
  const BlockPlace place = block_place(args);
  BwdTile found = bwd_tile_at<kPolicy.block_n()>(args, place.head_of_all, place.tile);
  let_next_kernel_start();
  if (found.keys <= 0) return tile_is_done(args, found);
  find_queries<kPolicy>(args, place.split, found);
  if (threadIdx.x == 0) tile = found;
  __syncthreads();
  Backward<T, kPolicy> backward(args, tile, smem);
  backward.run();
}

}  // namespace xformers::cuda::sm80
