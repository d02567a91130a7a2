// Forward on tensor cores (mma.sync), one block per tile of query rows:
//
//   load Q
//   for blocks of keys:  load V | S = Q K^T;  load the next K | bias, mask, online softmax, dropout;  O += P V
//   write out and lse, or this split's partial results
//
// Each warp owns warp_rows rows and all keys and dims; for wide heads two warps share rows, and halve the keys of the
// scores and the dims of the output between them.
#pragma once

#include <type_traits>

#include "xformers/kernels/cuda/attention/block_rows.cuh"
#include "xformers/kernels/cuda/attention/sm80/fwd_output.cuh"
#include "xformers/kernels/cuda/attention/sm80/fwd_scores.cuh"
#include "xformers/kernels/cuda/attention/sm80/fwd_softmax.cuh"
#include "xformers/kernels/cuda/attention/sm80/fwd_span.cuh"

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

// O += P V with the step's scores as probabilities. `key`: the warp's first one. `meanwhile` is called when the first
// products are on their way. shown(square): of 16 keys of the step.
template <class T, FwdPolicy kPolicy, class Meanwhile, class Shown>
__device__ __forceinline__ void accumulate_step(typename WarpPart<kPolicy>::Output& out,
                                                const typename WarpPart<kPolicy>::Scores& s, const FwdGrid& args,
                                                const FwdTile& tile, const WarpPart<kPolicy>& warp,
                                                const FwdMemory<kPolicy>& memory, int key, const Meanwhile& meanwhile,
                                                const Shown& shown) {
  constexpr bool kAlone = kPolicy.sharers == 1;
  const ValueOperand<kPolicy> v(memory.v, warp);
  if constexpr (!kPolicy.features.may(kDropoutOp) && kAlone) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    constexpr int kThen = kPolicy.features == Features::kPlain ? 16 : 0;
#else
    constexpr int kThen = 0;  // later, sm_80's schedule spills
#endif
#pragma unroll
    for (int i = 0; i < kPolicy.warp_keys(); i += 16) {
      if (shown(i / 16)) {
        uint32_t probabilities[kPolicy.row_tiles][4];
        to_probabilities<T, kPolicy>(probabilities, s, i / 16);
        accumulate<T, kPolicy>(out, probabilities, v, i);
      }
      if (i == kThen) meanwhile();
    }
  } else {
    typename WarpPart<kPolicy>::Probabilities probabilities;
#pragma unroll
    for (int i = 0; i < kPolicy.warp_keys(); i += 16) to_probabilities<T, kPolicy>(probabilities[i / 16], s, i / 16);
    if (kPolicy.features.may(kDropoutOp) && args.p.dropout.p > 0) {
#pragma unroll
      for (int i = 0; i < kPolicy.warp_keys(); i += 32) {
        drop<kPolicy.row_tiles>(&probabilities[i / 16], tile.philox, args.drop_rule, tile.stream_head,
                                tile.first + warp.row, key + i);
        if constexpr (kAlone) {  // the draws of the next 32 keys fill the gaps between these products
          if (shown(i / 16)) accumulate<T, kPolicy>(out, probabilities[i / 16], v, i);
          if (shown(i / 16 + 1)) accumulate<T, kPolicy>(out, probabilities[i / 16 + 1], v, i + 16);
          if (i == 0) meanwhile();
        }
      }
      if constexpr (kAlone) return;
    }
    accumulate_all<T, kPolicy>(out, probabilities, v, memory.shared_scores, warp, meanwhile, shown);
  }
}

template <FwdPolicy kPolicy>
using FwdBlocks = BlockRows<kPolicy.block_m(), kPolicy.block_n>;
// What stands for them where there is no block mask.
struct NoBlocks {};

// `sight`: what a warp's rows see of a band (SequenceSight, SpanSight). hidden: FwdBlocks, or NoBlocks.
template <class T, FwdPolicy kPolicy, class Sight, class Blocks = NoBlocks>
__device__ __forceinline__ void forward(const FwdGrid& args, const FwdTile& tile, const FwdMemory<kPolicy>& memory,
                                        const Sight& sight, const FwdTilts<kPolicy>& tilts, Blocks&& hidden = {}) {
  constexpr int kKeys = kPolicy.block_n;
  constexpr bool kScored = kPolicy.features == Features::kScored, kGeneral = kPolicy.features == Features::kGeneral,
                 kModifies = kPolicy.features.may(kModifyOps), kBlocked = kPolicy.features.blocked();
  const AttentionFwdParams& p = args.p;
  const bool hides = kPolicy.features == Features::kBlocked || (kBlocked && p.blocks.present());
  const WarpPart<kPolicy> warp;
  const Range& blocks = tile.blocks;
  const KeyTiles<T, kPolicy> k(args, p.k, p.quantization.k_scale_shift, tile, tile.k_origin, p.shape.head_dim);
  const KeyTiles<T, kPolicy> v(args, p.v, p.quantization.v_scale_shift, tile, tile.v_origin, p.shape.head_dim_v);
  const BiasTiles<T, kPolicy> bias(args, tile, warp, memory.bias);
  // What else happens to scores, and a scale that turns the order around, want them scaled before the maximum is taken.
  const bool scale_first = kModifies || (kScored && (bias.present() || !(args.unit.scale > 0)));
  const ScoreUnit unit = scale_first ? ScoreUnit(1, kLog2e) : args.unit;
  const RowExchange<kPolicy> exchange{warp, memory.shared_rows};
  SoftmaxRows<kPolicy.row_tiles> softmax;
  typename WarpPart<kPolicy>::Output out = {};

  // A group of copies per K and V; bias follows K in one of its own, which is awaited with V.
  const auto load_bias = [&](int block) {
    if constexpr (kScored) {
      if (block < blocks.end && bias.present()) bias.load(block * kKeys + warp.key());
      copy_async_commit();
    }
  };
  const auto load_first = [&](int block) {
    load_q<T, kPolicy>(memory.q, args, tile);
    k.load(memory.k, block * kKeys);
    copy_async_commit();
    load_bias(block);
  };
  int turn = 0;  // how many steps a block mask has led to
  const auto first = [&] {
    if constexpr (kBlocked) {
      if (hides) return hidden.walk.at(0).index;
    }
    return blocks.begin;
  };
  const auto behind = [&](int block) {
    if constexpr (kBlocked) {
      if (hides) return hidden.walk.at(turn + 1).index;
    }
    return block + 1;
  };
  if constexpr (kBlocked) {
    if (const int block = first(); block < blocks.end) load_first(block);
  } else {
    if (!blocks.empty()) load_first(blocks.begin);
  }
  // fn(squares): products test none of them where each is wanted.
  const auto with_squares = [&](const auto& shown, const auto& fn) {
    if constexpr (kPolicy.features == Features::kBlocked) {
      if (shown.every(kKeys / kSquare)) return fn(EverySquare());
    }
    fn(shown);
  };
  // `kEdge`: some row may not see all of these keys.
  const auto step = [&]<bool kEdge>(int block, std::bool_constant<kEdge>) {
    const int key = block * kKeys;
    const auto load_v = [&] {
      v.load(memory.v, key);
      copy_async_commit();
    };
    const auto load_next = [&] {
      if constexpr (kBlocked) {
        const int next = behind(block);
        k.load(memory.k, next * kKeys, next < blocks.end);
      } else {
        k.load(memory.k, key + kKeys, block + 1 < blocks.end);
      }
      copy_async_commit();
      load_bias(block + 1);
    };
    copy_async_wait<kScored ? 1 : 0>();
    __syncthreads();  // K is there; everybody is done with V
    std::conditional_t<kBlocked, SeenSquares, EverySquare> shown;
    if constexpr (kBlocked) {
      if (hides && warp.warp == 0) hidden.walk.find(p.blocks, turn + 2);
      if (hides) shown = hidden.template seen_by<kPolicy.warp_rows()>(warp.row, turn);
    }
    typename WarpPart<kPolicy>::Scores s;
    if (kBlocked && shown.none()) {
      load_v();
    } else {
      with_squares(shown, [&](const auto& squares) {
        multiply_scores<T, kPolicy>(s, warp, memory.q, memory.k, load_v, squares);
      });
    }
    copy_async_wait<0>();
    __syncthreads();  // V is there; everybody is done with K
    if (kBlocked && shown.none()) {
      load_next();
      return;  // nor do the warps that share its rows
    }

    // Warps that share rows stay in step with the others: their own barriers are passed by all or by none.
    if (kEdge && kPolicy.sharers == 1 && !sight.sees(warp, block)) {
      load_next();
      return;  // this warp's rows see none of these keys
    }
    if constexpr (kModifies) {
      const float scale = modify<false, !kGeneral, kPolicy.row_tiles, kPolicy.warp_keys() / 8>(
          s, args.unit.scale, p.mods, key + warp.key(), [&](int row) { return tilts.rows[warp.row + row]; });
      if constexpr (kGeneral) add_any_bias<T, kPolicy>(s, args, tile, warp, key + warp.key(), scale);
    }
    if constexpr (kScored) {
      if (bias.present()) {
        add_bias<T, kPolicy>(s, bias.tile(), args.unit.scale);
        __syncwarp();
      } else if (scale_first) {
        multiply<kPolicy.row_tiles, kPolicy.warp_keys() / 8>(s, args.unit.scale);
      }
    }
    if constexpr (kEdge) {
      const Range full = sight.full(warp);
      if (key < full.begin || key + kKeys > full.end) {
        mask<kPolicy.row_tiles, kPolicy.warp_keys() / 8>(s, key + warp.key(),
                                                         [&](int row) { return sight.visible(warp, row); });
      }
    }
    if constexpr (kBlocked) {
      const int square = warp.key() / kSquare;
      if (hides && !shown.is_full(square, kPolicy.warp_keys() / kSquare)) {
        hidden.template hide<kPolicy.row_tiles, kPolicy.warp_keys() / 8>(s, p.blocks, turn, warp.row, square);
      }
    }
    softmax.template step<kPolicy.warp_keys() / 8, kPolicy.warp_dims() / 8>(s, out, unit, exchange);
    with_squares(shown, [&](const auto& squares) {
      accumulate_step<T, kPolicy>(out, s, args, tile, warp, memory, key + warp.key(), load_next, squares);
    });
  };
#pragma unroll 1
  for (int block = first(); block < blocks.end; block = behind(block), ++turn) {
    // Twice the code pays where a step is little but products.
    constexpr bool kApart = (kPolicy.features == Features::kPlain || kPolicy.features == Features::kBlocked ||
                             kPolicy.features == Features::kModified) &&
                            kPolicy.sharers == 1 && !kPolicy.spans;
    if (kApart && block >= tile.full.begin && block < tile.full.end) {
      step(block, std::bool_constant<!kApart>());
    } else {
      step(block, std::true_type());
    }
  }
  softmax.finish(exchange);
  if constexpr (kPolicy.spans) sight.check(has_nan<kPolicy.row_tiles, kPolicy.warp_dims() / 8>(out));
  OutputWriter<T, kPolicy>(args, tile, warp).write(out, softmax, unit, memory.q);
}

// (nvcc's host stub of a kernel can't be a template over a struct, so the policy is made here.)
template <class T, int kHeadDim, int kFeatures>
__global__ void __launch_bounds__(fwd_policy(kHeadDim, Features::of(kFeatures)).threads(),
                                  fwd_policy(kHeadDim, Features::of(kFeatures)).blocks_per_sm)
    attention_fwd_sm80(const __grid_constant__ FwdGrid args) {
  constexpr FwdPolicy kPolicy = fwd_policy(kHeadDim, Features::of(kFeatures));
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ FwdTile tile;  // not in registers, which the accumulators fill
  __shared__ FwdTilts<kPolicy> tilts;
  if constexpr (kPolicy.spans) {
    __shared__ FwdSpan<kPolicy> span;
    if (threadIdx.x < 32) find_span<kPolicy>(tile, span, args);
    __syncthreads();
    do {
      if (tile.rows <= 0) continue;
      find_visible_keys<kPolicy>(tile, span, args);
      forward<T, kPolicy>(args, tile, FwdMemory<kPolicy>(shared_address(smem)), SpanSight<kPolicy>{span}, tilts);
    } while (next_sequence<kPolicy>(tile, span, args));
  } else {
    if (threadIdx.x < 32) {
      const FwdTile found = fwd_tile<kPolicy>(args);
      if (threadIdx.x == 0) tile = found;
    }
    __syncthreads();
    if (tile.rows <= 0) return;
    if constexpr (kPolicy.tilts()) tilts.find(args, tile);  // the first step's barriers come before they are read
    const SequenceSight<kPolicy> sight{args, tile};
    if constexpr (kPolicy.features.blocked()) {
      __shared__ FwdBlocks<kPolicy> hidden;
      if (kPolicy.features == Features::kBlocked || args.p.blocks.present()) {
        hidden.begin(args.p.blocks, rows_of(args, tile), tile.blocks);
        __syncthreads();
      }
      forward<T, kPolicy>(args, tile, FwdMemory<kPolicy>(shared_address(smem)), sight, tilts, hidden);
    } else {
      forward<T, kPolicy>(args, tile, FwdMemory<kPolicy>(shared_address(smem)), sight, tilts);
    }
  }
}

}  // namespace xformers::cuda::sm80
