// Forward on tensor cores (mma.sync), one block per tile of query rows:
//
//   load Q
//   for blocks of keys:  load V | S = Q K^T;  load the next K | bias, mask, online softmax, dropout;  O += P V
//   write out and lse, or this split's partial results
//
// Each warp owns warp_rows rows and all keys and dims; for wide heads two warps share rows, and halve the keys of the
// scores and the dims of the output between them.
#pragma once

#include "xformers/kernels/cuda/attention/sm80/fwd_dropout.cuh"
#include "xformers/kernels/cuda/attention/sm80/fwd_output.cuh"
#include "xformers/kernels/cuda/attention/sm80/fwd_scores.cuh"
#include "xformers/kernels/cuda/attention/sm80/fwd_softmax.cuh"

namespace xformers::cuda::sm80 {

// Addresses in shared memory.
template <FwdPolicy kPolicy>
struct FwdMemory {
  uint32_t q, k, v, bias, shared_rows, shared_scores;

  __device__ __forceinline__ explicit FwdMemory(uint32_t smem)
      : q(smem),
        k(q + kPolicy.q_bytes()),
        v(k + kPolicy.keys_bytes()),
        bias(v + kPolicy.keys_bytes()),
        shared_rows(bias + kPolicy.bias_bytes()),
        shared_scores(shared_rows + kPolicy.shared_row_bytes()) {}
};

// O += P V with the step's scores as probabilities. `key`: the warp's first one.
template <class T, FwdPolicy kPolicy>
__device__ __forceinline__ void accumulate_step(typename WarpPart<kPolicy>::Output& out,
                                                const typename WarpPart<kPolicy>::Scores& s, const FwdGrid& args,
                                                const FwdTile& tile, const WarpPart<kPolicy>& warp,
                                                const FwdMemory<kPolicy>& memory, int key) {
  constexpr bool kAlone = kPolicy.sharers == 1;
  if constexpr (kPolicy.features == Features::kPlain && kAlone) {
#pragma unroll
    for (int i = 0; i < kPolicy.warp_keys(); i += 16) {
      uint32_t probabilities[kPolicy.row_tiles][4];
      to_probabilities<T, kPolicy>(probabilities, s, i / 16);
      accumulate<T, kPolicy>(out, probabilities, memory.v, i, warp);
    }
    return;
  }
  typename WarpPart<kPolicy>::Probabilities probabilities;
#pragma unroll
  for (int i = 0; i < kPolicy.warp_keys(); i += 16) to_probabilities<T, kPolicy>(probabilities[i / 16], s, i / 16);
  if (kPolicy.features != Features::kPlain && args.p.dropout.p > 0) {
#pragma unroll
    for (int i = 0; i < kPolicy.warp_keys(); i += 32) {
      drop<kPolicy>(&probabilities[i / 16], args, tile, warp, key + i);
      if constexpr (kAlone) {  // the draws of the next 32 keys fill the gaps between these products
        accumulate<T, kPolicy>(out, probabilities[i / 16], memory.v, i, warp);
        accumulate<T, kPolicy>(out, probabilities[i / 16 + 1], memory.v, i + 16, warp);
      }
    }
    if constexpr (kAlone) return;
  }
  accumulate_all<T, kPolicy>(out, probabilities, memory.v, memory.shared_scores, warp);
}

template <class T, FwdPolicy kPolicy>
__device__ __forceinline__ void forward(const FwdGrid& args, const FwdTile& tile, const FwdMemory<kPolicy>& memory) {
  constexpr int kKeys = kPolicy.block_n;
  constexpr bool kScored = kPolicy.features == Features::kScored, kGeneral = kPolicy.features == Features::kGeneral;
  const AttentionFwdParams& p = args.p;
  const WarpPart<kPolicy> warp;
  const Range& blocks = tile.blocks;
  const KeyTiles<T, kPolicy> k(args, p.k, p.quantization.k_scale_shift, tile, tile.k_origin, p.shape.head_dim);
  const KeyTiles<T, kPolicy> v(args, p.v, p.quantization.v_scale_shift, tile, tile.v_origin, p.shape.head_dim_v);
  const BiasTiles<T, kPolicy> bias(args, tile, warp, memory.bias);
  // A bias, and a scale that turns the order around, want scores that are scaled before the maximum is taken.
  constexpr float kLog2e = 1.4426950408889634f;
  const float softmax_scale = static_cast<float>(p.softmax_scale);
  const bool scale_first = kGeneral || (kScored && (bias.present() || !(softmax_scale > 0)));
  const float scale = scale_first ? kLog2e : args.scale_log2;
  OnlineSoftmax<kPolicy> softmax(warp, memory.shared_rows);
  typename WarpPart<kPolicy>::Output out = {};

  // A group of copies per K and V; bias follows K in one of its own, which is awaited with V.
  const auto load_bias = [&](int block) {
    if constexpr (kScored) {
      if (block < blocks.end && bias.present()) bias.load(block * kKeys + warp.key());
      copy_async_commit();
    }
  };
  if (!blocks.empty()) {
    load_q<T, kPolicy>(memory.q, args, tile);
    k.load(memory.k, blocks.begin * kKeys);
    copy_async_commit();
    load_bias(blocks.begin);
  }
#pragma unroll 1
  for (int block = blocks.begin; block < blocks.end; ++block) {
    const int key = block * kKeys;
    copy_async_wait<kScored ? 1 : 0>();
    __syncthreads();  // K is there; everybody is done with V
    v.load(memory.v, key);
    copy_async_commit();
    typename WarpPart<kPolicy>::Scores s;
    multiply_scores<T, kPolicy>(s, warp, memory.q, memory.k);
    copy_async_wait<0>();
    __syncthreads();  // V is there; everybody is done with K
    if (block + 1 < blocks.end) k.load(memory.k, key + kKeys);
    copy_async_commit();

    // Warps that share rows stay in step with the others: their own barriers are passed by all or by none.
    const bool sees = kPolicy.sharers > 1 || warp_keys<kPolicy>(args, tile, warp).sees(block);
    if (sees) {
      if constexpr (kGeneral) add_any_bias<T, kPolicy>(s, args, tile, warp, key + warp.key(), softmax_scale);
      if constexpr (kScored) {
        if (bias.present()) {
          add_bias<T, kPolicy>(s, bias.tile(), softmax_scale);
          __syncwarp();
        } else if (scale_first) {
          multiply<kPolicy>(s, softmax_scale);
        }
      }
    }
    load_bias(block + 1);
    if (!sees) continue;  // this warp's rows see none of these keys
    const Range full = warp_keys<kPolicy>(args, tile, warp).full;
    if (key < full.begin || key + kKeys > full.end) mask<kPolicy>(s, args, tile, warp, key + warp.key());
    softmax.apply(s, out, scale);
    accumulate_step<T, kPolicy>(out, s, args, tile, warp, memory, key + warp.key());
  }
  softmax.finish();
  OutputWriter<T, kPolicy>(args, tile, warp).write(out, softmax, scale, memory.q);
}

// (nvcc's host stub of a kernel can't be a template over a struct, so the policy is made here.)
template <class T, int kHeadDim, Features kFeatures>
__global__ void __launch_bounds__(fwd_policy(kHeadDim, kFeatures).threads(),
                                  fwd_policy(kHeadDim, kFeatures).blocks_per_sm)
    attention_fwd_sm80(const __grid_constant__ FwdGrid args) {
  constexpr FwdPolicy kPolicy = fwd_policy(kHeadDim, kFeatures);
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ FwdTile tile;  // not in registers, which the accumulators fill
  if (threadIdx.x < 32) {
    const FwdTile found = fwd_tile<kPolicy>(args);
    if (threadIdx.x == 0) tile = found;
  }
  __syncthreads();
  if (tile.rows > 0) forward<T, kPolicy>(args, tile, FwdMemory<kPolicy>(shared_address(smem)));
}

}  // namespace xformers::cuda::sm80
