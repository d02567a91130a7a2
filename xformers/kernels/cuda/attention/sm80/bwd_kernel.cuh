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
// run beside the other's products. Shared memory: BwdShared.
//
// What is rare has a copy of the loop for itself (kRare), so that ordinary tiles pay nothing for it: sequences shorter
// than a tile, which lie in one tile beside each other (`spans`; who sees whom is then a range of queries per key), dq
// that a tile has whole and writes itself, scores so large that P wants exact differences, dS beyond fp16. Where there
// may be a bias or dropout one loop does all.
#pragma once

#include <type_traits>

#include "xformers/kernels/cuda/attention/sm80/bwd_bias_gradient.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_dq.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_loads.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_outputs.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_parts.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_products.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_scores.cuh"
#include "xformers/kernels/cuda/attention/turns.cuh"

namespace xformers::cuda::sm80 {

template <class T, BwdPolicy kPolicy>
class Backward {
  using Warp = BwdWarp<kPolicy>;
  using Step = BwdStep<kPolicy>;
  static constexpr int kBlockM = kPolicy.block_m, kBlockN = kPolicy.block_n(), kStages = kPolicy.stages;
  static constexpr int kQueryBytes = kPolicy.tile_bytes(kBlockM), kKeyBytes = kPolicy.tile_bytes(kBlockN);
  static constexpr bool kScored = kPolicy.features == Features::kScored;
  static constexpr int kDqParts = kBlockM / kPolicy.dq_rows();

  static constexpr bool kGeneral = kPolicy.features == Features::kGeneral;
  static constexpr bool kTwoLoops = kPolicy.features == Features::kPlain;
  static constexpr bool kModifies = kPolicy.features.may(kModifyOps);
  static constexpr bool kBlocked = kPolicy.features.blocked();

  using Shared = BwdShared<kPolicy>;
  static_assert(!kPolicy.behind || (kPolicy.sharing > 1 && kStages == 2),
                "dS of the step before is not kept elsewhere");
  static_assert(kStages == 2 || kPolicy.sharing > 1, "Q and dO are loaded anew between other barriers");

  const BwdArgs& args_;
  const AttentionBwdParams& p_;
  Shared& shared_;
  const BwdTile& tile_;
  const Warp warp_;
  uint32_t smem_k_, smem_v_, smem_q_, smem_dout_, smem_ds_, smem_p_, smem_bias_;
  typename Warp::Sums acc_dk_ = {}, acc_dv_ = {};
  float slope_sum_ = 0;  // this lane's, of dS * distance
  int turn_ = 0;         // how many steps a block mask has led to

 public:
  __device__ __forceinline__ Backward(const BwdArgs& args, Shared& shared)
      : args_(args), p_(args.p), shared_(shared), tile_(shared.tile) {
    smem_k_ = shared_address(shared.k), smem_v_ = shared_address(shared.v);
    smem_q_ = shared_address(shared.q), smem_dout_ = shared_address(shared.dout);
    smem_ds_ = shared_address(shared.scores);
    smem_p_ = smem_ds_ + kPolicy.ds_tiles() * kPolicy.scores_bytes();
    smem_bias_ = smem_ds_ + kPolicy.score_tiles() * kPolicy.scores_bytes();
  }

  __device__ __forceinline__ void run() {
    int block = down() ? tile_.last_block - 1 : tile_.first_block;
    if (hides()) block = shared_.walk().at(0).index;
    bool rare = !kTwoLoops;
    if (is_mine(block)) {
      load_keys(smem_k_, p_.k, p_.shape.head_dim);
      load_q<true>(block, 0);
      copy_async_commit();
      load_keys(smem_v_, p_.v, p_.shape.head_dim_v);
      load_dout(block, 0);
      copy_async_commit();
      rare |= is_rare();
    }
    if (rare) {
      Backward(args_, shared_).template work<true>(block);
    } else {
      Backward(args_, shared_).template work<false>(block);
    }
  }

 private:
  template <bool kRare>
  __device__ __forceinline__ void work(int block) {
    loop<kRare>(block);
    if (may_overflow<kRare>() && is_mine(block)) multiply(acc_dk_, 1 / shared_.dk_factor);
    if constexpr (parts_long(kPolicy)) {
      if (args_.long_tiles.parts && shared_.share().parts > 1 &&
          !join_parts<kPolicy>(args_, tile_, shared_, acc_dk_, acc_dv_)) {
        return;
      }
    }
    if (args_.turns && tile_.first_block < tile_.last_block) end_turn(tile_.dq_block + tile_.first_block * kDqParts);
    if (kModifies && args_.slope_parts) {
      const float sum = sum_of_warp(slope_sum_);
      if (threadIdx.x % 32 == 0) shared_.warp_extremes[threadIdx.x / 32][0] = sum;
    }
    __threadfence();  // before tile_is_done()
    __syncthreads();
    if (threadIdx.x == 0) tile_is_done(args_, tile_.head_of_all);
    if (kModifies && args_.slope_parts && threadIdx.x == 0) {
      double sum = 0;
      for (const float(&one)[3] : shared_.warp_extremes) sum += static_cast<double>(one[0]);
      slope_part(args_, {tile_.head_of_all, tile_.index, tile_.split}) = {sum, tile_.sequence.index};
    }
    if (args_.splits > 1) {
      float4* const to = partial_sums<kPolicy>(args_, tile_, tile_.split);
      store_partial<kPolicy>(to, acc_dk_);
      store_partial<kPolicy>(to + Warp::kKeyTiles * Warp::kDimTiles * Warp::kThreads, acc_dv_);
    } else {
      write_keys<T>(args_, tile_, p_.dk, p_.shape.head_dim, warp_, acc_dk_, args_.scale);
      write_keys<T>(args_, tile_, p_.dv, p_.shape.head_dim_v, warp_, acc_dv_, 1.0f);
    }
  }
  // Whether there is a block mask: the steps are then those of its walk.
  __device__ __forceinline__ bool hides() const {
    return kPolicy.features == Features::kBlocked || (kBlocked && p_.blocks.present());
  }
  __device__ __forceinline__ bool down() const { return args_.turns != nullptr; }
  __device__ __forceinline__ bool is_mine(int block) const {
    return block >= tile_.first_block && block < tile_.last_block;
  }
  // Finds out whether any row that the tile sees may want exact scores, and whether any dS may be beyond the range of
  // fp16 (ds_bound; P is at most what dropout makes of 1). Asked where the first loads are waited for anyway.
  __device__ __forceinline__ bool is_rare() {
    const int begin = static_cast<int>(tile_.sequence.q_begin);
    const int first = begin + tile_.first_block * kBlockM;
    const int last = begin + min(tile_.last_block * kBlockM, tile_.sequence.seqlen_q) - 1;
    const RowExtremes* const rows =
        args_.extremes + int64_t{tile_.head_of_all} * ceil_div<int64_t>(p_.shape.seqlen_q, kStatisticsRows);
    float lse = 0, dout = 0, v = 0;
#pragma unroll 1
    for (int i = first / kStatisticsRows + threadIdx.x; i <= last / kStatisticsRows; i += Warp::kThreads) {
      lse = fmaxf(lse, rows[i].lse), dout = fmaxf(dout, rows[i].dout);
    }
    if constexpr (kMayOverflow<T>) {
      copy_async_wait<0>();
      __syncthreads();
      v = max_of_warp(largest_of<Warp::kThreads>(shared_.v));
      dout = max_of_warp(dout);
    }
    lse = max_of_warp(lse);
    float(&mine)[3] = shared_.warp_extremes[threadIdx.x / 32];
    if (threadIdx.x % 32 == 0) mine[0] = lse, mine[1] = dout, mine[2] = v;
    __syncthreads();
#pragma unroll
    for (const float(&one)[3] : shared_.warp_extremes) {
      lse = fmaxf(lse, one[0]), dout = fmaxf(dout, one[1]), v = fmaxf(v, one[2]);
    }
    const bool large = lse >= kLargeScore;
    const bool overflows =
        kMayOverflow<T> && ds_bound(dout, v, fmaxf(static_cast<float>(args_.kept), 1)) >= kMostOfFp16;
    if (threadIdx.x == 0) shared_.large_rows = large, shared_.may_overflow = overflows, shared_.dk_factor = 1;
    return large || overflows || spans() || args_.one_tile;
  }
  template <bool kRare>
  __device__ __forceinline__ void loop(int block) {
    if (!is_mine(block)) return;
    if (spans<kRare>()) {
      copy_async_wait<1>();
      __syncthreads();
      make_finite<T, kPolicy.head_dim, kPolicy.threads()>(shared_.k, [](int) {});
    }
    int stage = 0;
#pragma unroll 1
    while (is_mine(block)) {
      int next = down() ? block - 1 : block + 1;
      copy_async_wait<kStages == 1 ? 1 : 0>();
      __syncthreads();  // this block (one stage: its Q) is there; everybody is done with the one before
      if (hides()) {
        next = shared_.walk().at(turn_ + 1).index;
        if (threadIdx.x < 32) shared_.walk().find(p_.blocks, turn_ + 2);
      }
      if (kStages > 1) {
        if (is_mine(next)) load_q<kRare>(next, stage ^ 1), load_dout(next, stage ^ 1);
        copy_async_commit();
      }
      if (spans<kRare>()) {
        make_finite_rows(shared_.q[stage], stage);
        if (kStages > 1) make_finite_rows(shared_.dout[stage], stage);
        __syncthreads();
      }
      step<kRare>(block, stage, next);
      if (kStages > 1) stage ^= 1;
      if (hides()) ++turn_;
      block = next;
    }
    if (kPolicy.behind) add_dq_behind<kRare>(block, stage);
  }
  template <bool kRare>
  __device__ __forceinline__ bool may_overflow() const {
    return kRare && kMayOverflow<T> && shared_.may_overflow;
  }
  // Times a factor, as what is summed up to dk is from now on.
  __device__ __forceinline__ void bring_into_range(typename Warp::Scores& ds, float& of_step) {
    float most = max_of_warp(largest_finite(ds));
    const float before = shared_.dk_factor;
    if (threadIdx.x % 32 == 0) shared_.warp_extremes[threadIdx.x / 32][0] = most;
    __syncthreads();
#pragma unroll
    for (const float(&one)[3] : shared_.warp_extremes) most = fmaxf(most, one[0]);
    const float factor = factor_of(most);
    if (factor != before) multiply(acc_dk_, factor / before);
    if (factor != 1) multiply(ds, factor);
    if (threadIdx.x == 0) of_step = shared_.dk_factor = factor;
  }
  template <bool kRare = true>
  __device__ __forceinline__ bool spans() const {
    return kRare && may_span(kPolicy) && args_.key_queries != nullptr;
  }
  // A query that is not finite, or its dO, has no numbers as gradients: nor has then what is left of it.
  __device__ __forceinline__ void make_finite_rows(unsigned char (&rows)[kQueryBytes], int stage) {
    make_finite<T, kPolicy.head_dim, kPolicy.threads()>(rows,
                                                        [&](int row) { shared_.statistics[stage][0][row] = NAN; });
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
  template <bool kRare>
  __device__ __forceinline__ void load_q(int block, int stage) {  // and what else belongs to these queries
    const int first = block * kBlockM;
    load_queries(smem_q_ + stage * kQueryBytes, p_.q, tile_.q, p_.shape.head_dim, block);
    load_statistics<kPolicy>(shared_address(shared_.statistics[stage]), args_, tile_.row + first,
                             tile_.sequence.seqlen_q - first);
    if (spans<kRare>()) load_block_tiles(shared_.block_tiles[block % 4], args_, int64_t{block} * kDqParts);
    if (has_bias()) load_bias<T, kPolicy>(bias_of(stage), p_.mods.bias, tile_, first);
  }
  __device__ __forceinline__ uint32_t bias_of(int stage) const { return smem_bias_ + stage * kPolicy.scores_bytes(); }
  __device__ __forceinline__ void load_dout(int block, int stage) {
    load_queries(smem_dout_ + stage * kQueryBytes, p_.dout, tile_.dout, p_.shape.head_dim_v, block);
  }

  template <bool kRare>
  __device__ __forceinline__ void step(int block, int stage, int next) {
    const uint32_t q = smem_q_ + stage * kQueryBytes, dout = smem_dout_ + stage * kQueryBytes;
    const int first_query = block * kBlockM;
    const Step step{args_,          tile_, warp_, first_query, spans<kRare>(), shared_, shared_.statistics[stage][0],
                    bias_of(stage), turn_};
    std::conditional_t<kBlocked, WarpSquares<kPolicy>, EverySquare> shown;
    bool idle = false, hidden = false;  // this warp's scores are all hidden; some are
    if constexpr (kBlocked) {
      if (hides()) shown.find(shared_, warp_, turn_);
      idle = shown.none(warp_), hidden = hides() && !shown.is_full(warp_);
    }
    const uint32_t smem_ds = ds_of(stage);
    const bool early = args_.turns || threadIdx.x < kPolicy.threads() / 2;
    if (kPolicy.behind && early) add_dq_behind<kRare>(block, stage);
    typename Warp::Scores scores = {}, dprobs = {};
    const auto scores_of_dout = [&] {
      with_squares(shown, [&](const auto& squares) {
        with_features<kRare>(step, [&](auto bias, auto drops, auto exact) {
          if constexpr (kStages > 1)
            multiply_transposed<T, exact.value && !kGeneral>(scores, warp_, smem_k_, q, Nothing(), squares);
          multiply_and_differentiate<bias.value, drops.value, exact.value>(dprobs, scores, step, dout, squares, hidden);
        });
      });
    };
    if constexpr (kStages > 1) {
      if (!idle) scores_of_dout();
    } else {
      if (!idle) {
        with_squares(
            shown, [&](const auto& squares) { multiply_transposed<T>(scores, warp_, smem_k_, q, Nothing(), squares); });
      }
      copy_async_wait<0>();
      __syncthreads();  // dO is there
      if (spans<kRare>()) {
        make_finite_rows(shared_.dout[stage], stage);
        __syncthreads();
      }
      if (!idle) scores_of_dout();
    }
    typename Warp::Packed p, ds;
    pack_all<T>(p, warp_, scores);
    if (may_overflow<kRare>()) bring_into_range(dprobs, factor_of_step(block, stage));
    pack_all<T>(ds, warp_, dprobs);
    store_scores(smem_ds, warp_, ds);
    if constexpr (kPolicy.sharing == 1) {
      with_squares(shown, [&](const auto& squares) { accumulate<T>(acc_dv_, warp_, p, dout, squares); });
      with_squares(shown, [&](const auto& squares) { accumulate<T>(acc_dk_, warp_, ds, q, squares); });
      sync_in_turn(step, block);  // dS is there
    } else {
      store_scores(smem_p_, warp_, p);
      if (kPolicy.behind && !early) add_dq_behind<kRare>(block, stage);
      sync_in_turn(step, block);  // P and dS are there
      with_squares(shown, [&](const auto& squares) { accumulate<T>(acc_dk_, warp_, smem_ds, q, squares); });
      if (kStages == 1) {
        __syncthreads();  // everybody is done with Q
        if (is_mine(next)) load_q<kRare>(next, 0);
        copy_async_commit();
      }
      with_squares(shown, [&](const auto& squares) { accumulate<T>(acc_dv_, warp_, smem_p_, dout, squares); });
      if (kStages == 1) {
        __syncthreads();  // everybody is done with dO
        if (is_mine(next)) load_dout(next, 0);
        copy_async_commit();
      }
    }
    if (!kPolicy.behind) add_dq<kRare>(block, stage, turn_);
  }
  __device__ __forceinline__ uint32_t ds_of(int stage) const {
    return smem_ds_ + (kPolicy.behind ? stage * kPolicy.scores_bytes() : 0);
  }
  // What dS of a step was multiplied by. Steps of a block mask may be any; they have two stages where two of them are
  // at work.
  __device__ __forceinline__ float& factor_of_step(int block, int stage) {
    return shared_.ds_factors[kBlocked ? stage : block % 2];
  }
  // And the gradient of the bias, of the same dS. `turn`: of the step, which the stage was of.
  template <bool kRare>
  __device__ __forceinline__ void add_dq(int block, int stage, int turn) {
    const uint32_t ds = ds_of(stage);
    const auto factor = [&] { return may_overflow<kRare>() ? factor_of_step(block, stage) : 1; };
    if constexpr (kScored) {
      if (p_.dbias.data) store_dbias<T, kPolicy>(args_, tile_, block * kBlockM, ds, factor());
    }
#pragma unroll 1
    for (int part = 0; part < kDqParts; ++part) {
      if (block * kBlockM + part * kPolicy.dq_rows() >= tile_.sequence.seqlen_q) continue;
      bool whole = kRare && args_.one_tile;
      if (spans<kRare>()) {
        const Range tiles = shared_.block_tiles[block % 4][part];
        if (tile_.index < tiles.begin || tile_.index >= tiles.end) continue;  // no key of this one is seen
        whole = one_tile(tiles);
      }
      sm80::add_dq<T, kPolicy>(
          args_, tile_, part, ds, smem_k_, factor, block * kDqParts + part, whole, [&](int line, int first, int count) {
            if constexpr (!kBlocked) return true;
            return !hides() || (shared_.walk().at(turn).seen[line] >> first & all_squares(count)) != 0;
          });
    }
  }
  // Of the step before this one.
  template <bool kRare>
  __device__ __forceinline__ void add_dq_behind(int block, int stage) {
    int before = down() ? block + 1 : block - 1;
    if (hides()) before = turn_ > 0 ? shared_.walk().at(turn_ - 1).index : -1;
    if (is_mine(before)) add_dq<kRare>(before, stage ^ 1, turn_ - 1);
  }

  // fn(bias, drops, exact): what this call asks for, and these scores need, as constants. One branch around both
  // products: these then overlap.
  template <bool kRare, class Fn>
  __device__ __forceinline__ void with_features(const Step& step, const Fn& fn) {
    constexpr std::bool_constant<kPolicy.features.may(kBiasOp | kDropoutOp)> kMaybe;
    constexpr std::true_type kYes;
    constexpr std::false_type kNo;
    const bool drops = kMaybe.value && p_.dropout.p > 0;
    if constexpr (kGeneral) {  // one form for all scores: registers are short
      if (drops) {
        fn(kYes, kYes, kYes);
      } else {
        fn(kYes, kNo, kYes);
      }
    } else if (kRare && shared_.large_rows && step.has_large_rows(drops)) {
      fn(kMaybe, kMaybe, kYes);
    } else if (!drops) {
      fn(kMaybe, kNo, kNo);
    } else if (kScored && !has_bias()) {
      fn(kNo, kMaybe, kNo);
    } else {
      fn(kMaybe, kMaybe, kNo);
    }
  }
  // fn(squares): products test none of them where each is wanted.
  template <class Shown, class Fn>
  __device__ __forceinline__ static void with_squares(const Shown& shown, const Fn& fn) {
    if constexpr (kPolicy.features == Features::kBlocked) {
      if (shown.every()) return fn(EverySquare());
    }
    fn(shown);
  }
  // dP, and between the slices of this product scores -> P; then what dropout keeps, and dS.
  template <bool kBias, bool kDrops, bool kExact, class Shown>
  __device__ __forceinline__ void multiply_and_differentiate(typename Warp::Scores& dprobs,
                                                             typename Warp::Scores& scores, const Step& step,
                                                             uint32_t dout, const Shown& shown, bool hidden) {
    constexpr int kSlices = Warp::kDim / 16, kPairs = Warp::kQueryTiles / 2;
    CapSlopes<kPolicy> cap_slopes;
    if constexpr (kExact && !kGeneral) {
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) exponentiate<kBias, true, T>(step, scores, cap_slopes, 2 * pair);
      multiply_transposed<T, true>(dprobs, warp_, smem_v_, dout, Nothing(), shown);
    } else {
      const auto between = [&](int d) {
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair) {
          if (d == (kGeneral ? kSlices - 1 : pair * kSlices / kPairs))  // bias elements are read one by one
            exponentiate<kBias, kExact, T>(step, scores, cap_slopes, 2 * pair);
        }
      };
      multiply_transposed<T>(dprobs, warp_, smem_v_, dout, between, shown);
    }
    KeptScores<Warp::kQueryTiles> kept;
    if constexpr (kDrops)
      kept.draw(tile_.dropout, args_.drop_rule, tile_.first_key + warp_.key, step.first_query + warp_.query);
    differentiate<kDrops, kExact>(step, kept, scores, dprobs);
    if (!step.is_full()) mask(step, scores, dprobs);
    if constexpr (kBlocked) {
      if (hidden) mask_blocks(step, scores, dprobs);
    }
    if (kGeneral && p_.dbias.data) store_dbias_elements<T>(step, dprobs);
    if constexpr (kModifies) {
      if (args_.slope_parts) {
        slope_sum_ += distances_times<Warp::kKeyTiles, Warp::kQueryTiles>(
            dprobs, step.first_query + warp_.query, [&](int row) { return step.tilt_of(row).place; });
      }
      if (p_.mods.softcap > 0) uncap<kPolicy>(dprobs, cap_slopes);
    }
  }

  // __syncthreads(). Where turns are taken, this step's has come then, and that of the step before ends: what it added
  // has had the time of these products to arrive.
  __device__ __forceinline__ void sync_in_turn(const Step& step, int block) {
    if (!args_.turns) return __syncthreads();
    int* const turn = args_.turns + tile_.dq_block + block * kDqParts;
    __threadfence();
    if (threadIdx.x == 0) {
      const Range queries{step.first_query, min(step.first_query + kBlockM, tile_.sequence.seqlen_q)};
      await_turn(turn, turn_of(tile_.band, queries, tile_.first_key, kBlockN));
    }
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
  auto& shared = reinterpret_cast<BwdShared<kPolicy>&>(smem);
  BlockPlace place = block_place(args);
  int splits = args.splits;
  if constexpr (parts_long(kPolicy)) {
    if (args.long_tiles.parts && !find_part(args, place, splits, shared)) return;
  }
  BwdTile found = bwd_tile_at<kPolicy.block_n()>(args, place.head_of_all, place.tile);
  let_next_kernel_start();
  if (found.keys <= 0) {
    if (threadIdx.x == 0) tile_is_done(args, found.head_of_all);
    if (kPolicy.features.may(kAlibiOp) && args.slope_parts && threadIdx.x == 0) slope_part(args, place) = {};
    return;
  }
  find_queries<kPolicy>(args, place.split, splits, found, shared);
  if (threadIdx.x == 0) shared.tile = found;
  if (kPolicy.features.blocked() && args.p.blocks.present() && threadIdx.x < 32) {
    shared.walk().begin(args.p.blocks, static_cast<int>(found.sequence.batch), found.group, found.head, found.first_key,
                        found.first_key + found.keys, {found.first_block, found.last_block});
  }
  __syncthreads();
  Backward<T, kPolicy> backward(args, shared);
  backward.run();
}

}  // namespace xformers::cuda::sm80
