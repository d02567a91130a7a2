// A warpgroup that has 64 rows of a tile, all keys and all dims:
//
//   S = Q K^T of the first block;  P = softmax step
//   for the others:  S' = Q K^T issued;  O += P V issued;  wait for S';  P' = softmax step, while P V goes on;  wait; O
//                    shrinks where the maximum has grown;  P = P'
//                    (near: the step takes the maximum that is there; where that was too far, S' is multiplied again)
//   O += P V of the last;  write
//
// Warpgroups take turns in issuing, so that one's products run beside the other's exponentials.
#pragma once

#include "xformers/kernels/cuda/arch/tma.cuh"
#include "xformers/kernels/cuda/arch/wgmma.cuh"
#include "xformers/kernels/cuda/attention/sm90/fwd_epilogue.cuh"
#include "xformers/kernels/cuda/attention/sm90/fwd_memory.cuh"

namespace xformers::cuda::sm90 {

// Named barriers of the block, 0 being that of all.
enum Barrier : int { kTurn = 1, kGroup = 5 };  // one per consumer each

// Consumer w issues when the one before it has.
template <int kConsumers>
struct Turns {
  int consumer;

  __device__ __forceinline__ void wait() const { sync_threads(kTurn + consumer, 256); }
  __device__ __forceinline__ void pass_on() const {
    asm volatile("bar.arrive %0, 256;\n" ::"r"(kTurn + (consumer + 1) % kConsumers) : "memory");
  }
};

template <class T, int kPolicyIndex>
class Consumer {
 protected:
  static constexpr FwdPolicy kPolicy = kFwdPolicies[kPolicyIndex];
  static constexpr int kKeyTiles = kPolicy.block_n / 8, kDimTiles = kPolicy.head_dim_v / 8;
  using Memory = FwdMemory<kPolicyIndex>;
  using Scores = Fragment<1, kKeyTiles>;
  using Output = Fragment<1, kDimTiles>;
  using Probabilities = uint32_t[kPolicy.block_n / 16][1][4];

 public:
  __device__ __forceinline__ Consumer(const FwdGrid& args, Memory& memory, int consumer)
      : args_(args), memory_(memory), consumer_(consumer), turns_{consumer} {}

  __device__ __forceinline__ void run() {
    if (consumer_ == kPolicy.consumers - 1) turns_.pass_on();
    Scores s;
    Probabilities p;
    Output acc_o;
    RowValues<1> shrink;
    for (; find_tile(); slot_.advance()) {
      SoftmaxRows<1> softmax;
      clear<1, kDimTiles>(acc_o);
      int block = first_block_;
      turns_.wait();
      issue_scores(s);
      turns_.pass_on();
      wgmma::wait<0>();
      wgmma::hold(s);
      change_scores(s, block);
      score_mask(s, block);
      step_ahead(softmax, s, shrink);
      release_scores(block);
      to_probabilities(p, s);
      drop(p, block);
#pragma unroll 1
      for (++block; block < end_block_; ++block) {
        turns_.wait();
        issue_scores(s);
        issue_output(acc_o, p);
        turns_.pass_on();
        wgmma::wait<1>();
        wgmma::hold(s);
        if constexpr (!kPolicy.near) release_scores(block);
        change_scores(s, block);
        score_mask(s, block);
        bool raised = false;
        if (!kPolicy.near || !near_ || !softmax.template step_near<kKeyTiles>(s, args_.unit, any_of_group())) {
          if (kPolicy.near && near_) scores_again(s, block);
          raised = step_ahead(softmax, s, shrink);
        }
        if constexpr (kPolicy.near) release_scores(block);
        wgmma::wait<0>();
        wgmma::hold(acc_o);
        release_output();
        if (raised) rescale<1, kDimTiles>(acc_o, shrink);
        to_probabilities(p, s);
        drop(p, block);
      }
      clear_rows_behind(block - 1);
      turns_.wait();
      issue_output(acc_o, p);
      turns_.pass_on();
      wgmma::wait<0>();
      wgmma::hold(acc_o);
      release_output();
      softmax.finish();
      write_results<T, kDimTiles, kPolicy.scored>(args_, work().tile, warp_row(work()), acc_o, softmax);
      arrive_warp(memory_.barriers.work_empty[slot_.index()]);
    }
  }

 protected:
  __device__ __forceinline__ const FwdWork& work() const { return memory_.work[slot_.index()]; }
  // Of this warpgroup, and of this warp, in the sequence.
  __device__ __forceinline__ int group_row(const FwdWork& work) const { return work.tile.first + consumer_ * 64; }
  __device__ __forceinline__ int warp_row(const FwdWork& work) const {
    return group_row(work) + static_cast<int>(threadIdx.x) % 128 / 32 * 16;
  }

  // Waits for the next tile that sees keys; the others are written at once. False: there are no more.
  __device__ __forceinline__ bool find_tile() {
    for (;; slot_.advance()) {
      wait_full(memory_.barriers.work_full[slot_.index()], slot_.parity());
      if (work().tile.rows <= 0) return false;
      if (!work().blocks.empty()) break;
      write_empty(args_, work().tile, warp_row(work()));
      arrive_warp(memory_.barriers.work_empty[slot_.index()]);
    }
    const int first = group_row(work());
    const Range full = work().band.full_range({first, first + 64});
    full_blocks_ = {ceil_div(max(full.begin, 0), kPolicy.block_n), full.end / kPolicy.block_n};
    first_block_ = work().blocks.begin, end_block_ = work().blocks.end;
    wait_full(memory_.barriers.q_full[q_.index()], q_.parity());
    return true;
  }

  // S = Q K^T of the next K.
  __device__ __forceinline__ void issue_scores(Scores& s) {
    wait_full(memory_.barriers.k_full[k_.index()], k_.parity());
    const wgmma::Operand q(shared_address(memory_.q[q_.index()]) + consumer_ * 64 * 128),
        k(shared_address(memory_.k[k_.index()]));
    wgmma::begin();
#pragma unroll
    for (int d = 0; d < kPolicy.head_dim; d += 16) {
      const int panel = d / wgmma::kPanel, within = d % wgmma::kPanel * 2;
      wgmma::multiply_ss<T, kKeyTiles>(s, q.at(panel * kPolicy.block_m() * 128 + within),
                                       k.at(panel * kPolicy.block_n * 128 + within), d == 0);
    }
    wgmma::commit();
  }
  // The same once more, before K is released.
  __device__ __forceinline__ void scores_again(Scores& s, int block) {
    wgmma::wait<0>();
    issue_scores(s);
    wgmma::wait<0>();
    wgmma::hold(s);
    score_mask(s, block);
  }

  // A step that looks for the maximum, and says whether the next one has to.
  __device__ __forceinline__ bool step_ahead(SoftmaxRows<1>& softmax, Scores& s, RowValues<1>& shrink) {
    const bool raised = softmax.template step_ahead<kKeyTiles>(s, shrink, args_.unit);
    if constexpr (kPolicy.near) near_ = !any_of_group()(!softmax.near);
    return raised;
  }
  // any(mine) over the warpgroup, whose warps multiply together.
  __device__ __forceinline__ auto any_of_group() const {
    return [barrier = kGroup + consumer_](bool mine) { return any_of_threads(barrier, 128, mine); };
  }
  // Those of `block` have arrived.
  __device__ __forceinline__ void release_scores(int block) {
    arrive_warp(memory_.barriers.k_empty[k_.index()]);
    k_.advance();
    if (block + 1 < end_block_) return;
    arrive_warp(memory_.barriers.q_empty[q_.index()]);
    q_.advance();
  }

  // O += P V of the next V.
  __device__ __forceinline__ void issue_output(Output& acc_o, const Probabilities& p) {
    wait_full(memory_.barriers.v_full[v_.index()], v_.parity());
    const wgmma::Operand v(shared_address(memory_.v[v_.index()]), kPolicy.block_n);
    wgmma::begin();
#pragma unroll
    for (int key = 0; key < kPolicy.block_n; key += 16) {
      wgmma::multiply_rs<T, kDimTiles>(acc_o, p[key / 16][0], v.at(key * 128));
    }
    wgmma::commit();
  }
  __device__ __forceinline__ void release_output() {
    arrive_warp(memory_.barriers.v_empty[v_.index()]);
    v_.advance();
  }

  // What happens to scores before the mask.
  __device__ __forceinline__ void change_scores(Scores& s, int block) {
    if constexpr (kPolicy.scored) {
      const ScoreModifiers& mods = args_.p.mods;
      const ScoredWork& of = memory_.scored_work[slot_.index()];
      const float slope = of.slope;
      const int diagonal = warp_row(work()) + of.alibi_shift;
      const float scale = modify<false, false, 1, kKeyTiles>(
          s, args_.scale, mods, block * kPolicy.block_n,
          [&](int row) { return RowTilt{slope, static_cast<float>(diagonal + row)}; });
      if (mods.bias.data) {
        add_bias(s, scale);
      } else if (args_.scales) {
        multiply<1, kKeyTiles>(s, scale);
      }
    }
  }
  // s = scale * s + bias: ldmatrix lays it out as an A operand, rows, rows + 8, then the next eight keys.
  __device__ __forceinline__ void add_bias(Scores& s, float scale) {
    wait_full(memory_.bias_full[bias_.index()][consumer_], bias_.parity());
    const int thread = thread_again(), lane = thread % 32;
    const int row = args_.has_bias_row ? 0 : thread % 128 / 32 * 16 + lane % 16;
    const uint32_t first = shared_address(memory_.bias[bias_.index()][consumer_]) + row * 128 +
                           (lane / 16 ^ row % 8) * 16;  // with the 128-byte swizzle
#pragma unroll
    for (int n = 0; n < kKeyTiles; n += 2) {
      uint32_t bias[4];
      load_matrices(bias, (first ^ n % 8 * 16) + n / 8 * (64 * 128));
      scale_and_add<T, kKeyTiles>(s, scale, n, bias);
    }
    arrive_warp(memory_.bias_empty[bias_.index()][consumer_]);
    bias_.advance();
  }

  __device__ __forceinline__ void drop(Probabilities& p, int block) const {
    if constexpr (kPolicy.scored) {
      if (!args_.drops) return;
      const PhiloxKey philox = memory_.philox;
      const uint32_t head = memory_.scored_work[slot_.index()].drop_head;
      const int row = warp_row(work());
#pragma unroll
      for (int key = 0; key < kPolicy.block_n; key += 32) {
        cuda::drop<1>(&p[key / 16], philox, args_.drop_rule, head, row, block * kPolicy.block_n + key);
      }
    }
  }

  // Keys of a block that some of the warpgroup's rows don't see.
  __device__ __forceinline__ void score_mask(Scores& s, int block) const {
    if (block >= full_blocks_.begin && block < full_blocks_.end) return;
    const Band& band = work().band;
    const int warp_first = warp_row(work());
    mask<1, kKeyTiles>(s, block * kPolicy.block_n, [&](int row) { return visible_keys(band, warp_first + row); });
  }

  __device__ __forceinline__ static void to_probabilities(Probabilities& p, const Scores& s) {
#pragma unroll
    for (int k = 0; k < kPolicy.block_n / 16; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const at = &s[0][2 * k + i / 2][i % 2 * 2];
        p[k][0][i] = pack<T>(at[0], at[1]);
      }
  }

  // Behind the last key of a packed sequence lie a neighbour's rows of V, which may be anything: their probabilities
  // are 0, but 0 times infinity is not. Every warpgroup clears them for itself.
  __device__ __forceinline__ void clear_rows_behind(int block) {
    const int rows = work().tile.sequence.seqlen_k - block * kPolicy.block_n;
    if (!args_.p.seq.packed() || rows >= kPolicy.block_n) return;
    wait_full(memory_.barriers.v_full[v_.index()], v_.parity());
    const uint32_t v = shared_address(memory_.v[v_.index()]);
    constexpr int kChunks = panels_of(kPolicy.head_dim_v) * 8;  // of 16 bytes, per row; which is which doesn't matter
    for (int i = threadIdx.x % 128; i < (kPolicy.block_n - rows) * kChunks; i += 128) {
      const int row = rows + i / kChunks, chunk = i % kChunks;
      store_shared_16(v + chunk / 8 * kPolicy.block_n * 128 + row * 128 + chunk % 8 * 16, {0, 0, 0, 0});
    }
    fence_shared_for_async();
    sync_threads(kGroup + consumer_, 128);
  }

  const FwdGrid& args_;
  Memory& memory_;
  int consumer_;
  Turns<kPolicy.consumers> turns_;
  bool near_ = false;                    // all of the warpgroup's rows are (SoftmaxRows::near)
  int first_block_ = 0, end_block_ = 0;  // of the tile whose scores come next
  Range full_blocks_ = {0, 0};           // those that all of the warpgroup's rows see
  Stage<kWorkSlots> slot_;
  Stage<kPolicy.scored ? kPolicy.bias_stages : 1> bias_;
  Stage<kPolicy.q_stages> q_;
  Stage<kPolicy.stages> k_, v_;
};

}  // namespace xformers::cuda::sm90
