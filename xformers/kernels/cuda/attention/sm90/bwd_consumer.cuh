// A warpgroup that has 64 keys of a tile, all queries that see them, and all dims:
//
//   for blocks of queries, from the last:
//     S^T = K Q^T, dP^T = V dO^T issued;  (what dropout keeps;)  wait for S^T;  P^T, while dP^T runs
//     dV += P^T dO issued;  wait for dP^T;  dS^T, while dV runs, also to shared memory
//     the other warpgroup's is there;  dQ = dS K, dK += dS^T Q issued;  (the gradient of the bias;)  wait for dQ
//     dQ added to dq_sum, while dK runs;  wait for dK
//   write dK, dV
//
// Scores are transposed, so that P^T and dS^T are in registers what the products with dO and Q want. Of dQ each of the
// two warpgroups has a part, over the keys of both. A kernel for dK and dQ leaves out the products with dO; one for dV
// is S^T, P^T, and dV while the next S^T is on its way (multiply_dv).
#pragma once

#include "xformers/kernels/cuda/attention/bias_gradient.cuh"
#include "xformers/kernels/cuda/attention/ds_range.cuh"
#include "xformers/kernels/cuda/attention/score_mods.cuh"
#include "xformers/kernels/cuda/attention/sm90/bwd_memory.cuh"
#include "xformers/kernels/cuda/attention/softmax.cuh"
#include "xformers/kernels/cuda/attention/write_sums.cuh"

namespace xformers::cuda::sm90 {

constexpr DqOrder dq_order(const BwdPolicy& policy) {
  return {policy.block_m, policy.dq_dims(), 128 * policy.kConsumers, policy.parts_dims() ? 4 : 8};
}

template <class T, int kPolicyIndex>
class BwdConsumer {
  static constexpr BwdPolicy kPolicy = kBwdPolicies[kPolicyIndex];
  static constexpr DqOrder kOrder = dq_order(kPolicy);
  static constexpr int kBlockM = kPolicy.block_m, kBlockN = kPolicy.kBlockN;
  static constexpr int kQueryTiles = kBlockM / 8, kPieces = kPolicy.q_pieces;
  enum Barrier : int { kBoth = 1, kMine = 2 };  // named ones: of both warpgroups; of one each
  using Memory = BwdMemory<kPolicyIndex>;
  using Scores = Fragment<1, kQueryTiles>;  // [keys, queries]
  using Packed = uint32_t[kBlockM / 16][4];
  template <int kDims>
  using Sums = Fragment<1, kDims / 8>;  // [keys, dims]
  using DkSums = Sums<kPolicy.piece_dims()>[kPieces];
  using DvSums = Sums<kPolicy.head_dim_v>;
  using DqSums = Fragment<kOrder.row_tiles(), kOrder.dim_tiles()>;

 public:
  __device__ __forceinline__ BwdConsumer(const BwdGrid& args, Memory& memory, int consumer)
      : args_(args), memory_(memory), consumer_(consumer) {}

  __device__ __forceinline__ void run() {
    for (;; slot_.advance()) {
      wait_full(memory_.barriers.work_full[slot_.index()], slot_.parity());
      if (work().tile.rows <= 0) return;
      DkSums acc_dk;
      DvSums acc_dv;
      clear_all(acc_dk);
      clear<1, kPolicy.head_dim_v / 8>(acc_dv);
      if (!work().blocks.empty()) {
        if constexpr (kPolicy.has_dk()) {
          multiply_all(acc_dk, acc_dv);
        } else {
          multiply_dv(acc_dv);
        }
      }
      if constexpr (kPolicy.has_dk()) {
        finish_dq();
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) {
          write_keys(args_.p.dk, args_.p.shape.head_dim, acc_dk[piece], piece * kPolicy.piece_dims(), args_.scale);
        }
      }
      if constexpr (kPolicy.has_dv()) write_keys(args_.p.dv, args_.p.shape.head_dim_v, acc_dv, 0, 1.0f);
      arrive_warp(memory_.barriers.work_empty[slot_.index()]);
    }
  }

 private:
  __device__ __forceinline__ const BwdWork& work() const { return memory_.work[slot_.index()]; }
  __device__ __forceinline__ int warp_key() const {  // in the tile
    return consumer_ * 64 + static_cast<int>(threadIdx.x) % 128 / 32 * 16;
  }

  __device__ __forceinline__ void multiply_all(DkSums& acc_dk, DvSums& acc_dv) {
    wait_full(memory_.barriers.k_full[k_.index()], k_.parity());
    clear_rows_behind<kBlockN, kPolicy.head_dim>(memory_.k[k_.index()], work().tile.rows);
    wait_full(memory_.barriers.v_full[beside_k(v_).index()], beside_k(v_).parity());
    find_range();
#pragma unroll 1
    for (int block = work().blocks.end - 1; block >= work().blocks.begin; --block) step(acc_dk, acc_dv, block);
    if (ds_factor_ != 1) multiply_all_by(acc_dk, 1 / ds_factor_);
    ds_factor_ = 1;
    arrive_warp(memory_.barriers.v_empty[beside_k(v_).index()]);
    arrive_warp(memory_.barriers.k_empty[k_.index()]);
    k_.advance(), v_.advance();
  }

  __device__ __forceinline__ void step(DkSums& acc_dk, DvSums& acc_dv, int block) {
    Scores s, dp;
    const Stage<kPolicy.q_stages> first = q_;
    const auto dout_at = beside_q(dout_);
    const auto ds_at = beside_q(ds_);
    issue_scores(s, block);
    wait_for_dout(dout_at, block);
    wgmma::begin();
    issue_by_dims<kPolicy.head_dim_v>(dp, memory_.v[beside_k(v_).index()], memory_.dout[dout_at.index()], true);
    wgmma::commit();
    const KeptOfKeys kept = draw(block);
    wgmma::wait<1>();
    wgmma::hold(s);
    const bool full = sees_all(block);
    finish_scores(s, kept, block, first.index(), full);
    Packed ds;
    if constexpr (kPolicy.has_dv()) {
      Packed p;
      pack_probabilities(p, s);
      issue_by_queries(acc_dv, p, memory_.dout[dout_at.index()]);
      wgmma::wait<1>();
      wgmma::hold(dp);
    } else {
      wgmma::wait<0>();
      wgmma::hold(dp);
      arrive_warp(memory_.barriers.dout_empty[dout_at.index()]);
    }
    differentiate(dp, s, first.index());
    if (!full) hide(dp, block);
    add_to_slope(dp, block);
    if (kMayOverflow<T> && may_overflow_) bring_into_range(dp, acc_dk);
    pack_all(ds, dp);
    if constexpr (kPolicy.ds_stages == 1) wait_empty(memory_.barriers.ds_empty, ds_at.parity());
    store_ds(ds, memory_.ds[ds_at.index()]);
    if (args_.turns) await_sums();  // of the step before, which have had time to arrive
    sync_threads(kBoth, 256);
    if (threadIdx.x == 128) end_turn(block + 1);
    DqSums dq;
    issue_dq(dq, memory_.ds[ds_at.index()]);
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece, q_.advance()) {
      issue_by_queries(acc_dk[piece], ds, memory_.q[q_.index()]);
    }
    store_bias_gradient(memory_.ds[ds_at.index()], block);
    wgmma::wait<kPieces>();
    wgmma::hold(dq);
    if constexpr (kPolicy.ds_stages == 1) arrive_warp(memory_.barriers.ds_empty);
    if constexpr (kPolicy.has_dv()) {
      wgmma::hold(acc_dv);
      arrive_warp(memory_.barriers.dout_empty[dout_at.index()]);
    }
    if (kMayOverflow<T> && ds_factor_ != 1) multiply(dq, 1 / ds_factor_);
    if (args_.turns) wait_full(memory_.barriers.turn[first.index()], first.parity());
    add_dq(args_.dq_sum + (work().dq_block + block) * kOrder.block(), dq);
    Stage<kPolicy.q_stages> piece = first;
    if constexpr (kPieces == 2) {
      wgmma::wait<1>();
      wgmma::hold(acc_dk[0]);
      arrive_warp(memory_.barriers.q_empty[piece.index()]);
      piece.advance();
    }
    wgmma::wait<0>();
    wgmma::hold(acc_dk[kPieces - 1]);
    arrive_warp(memory_.barriers.q_empty[piece.index()]);
    dout_.advance(), ds_.advance();
  }
  // Where a ring with as many stages is in a step: where that of Q, or of K, is. Each index of its own costs a dozen
  // instructions a step.
  template <int kStages>
  __device__ __forceinline__ Stage<kStages> beside_q(const Stage<kStages>& own) const {
    if constexpr (kStages == kPolicy.q_stages && kPieces == 1) {
      return q_;
    } else {
      return own;
    }
  }
  template <int kStages>
  __device__ __forceinline__ Stage<kStages> beside_k(const Stage<kStages>& own) const {
    if constexpr (kStages == kPolicy.k_stages) {
      return k_;
    } else {
      return own;
    }
  }

  // dV alone: the products with dO of a step run while the next step's P is made.
  __device__ __forceinline__ void multiply_dv(DvSums& acc_dv) {
    const int begin = work().blocks.begin;
    wait_full(memory_.barriers.k_full[k_.index()], k_.parity());
    Packed p;
    int block = work().blocks.end - 1;
    {
      Scores s;
      issue_scores(s, block);
      const KeptOfKeys kept = draw(block);
      wgmma::wait<0>();
      wgmma::hold(s);
      finish_scores(s, kept, block, q_.index(), sees_all(block));
      release_queries();
      pack_probabilities(p, s);
    }
#pragma unroll 1
    while (--block >= begin) {
      Scores s;
      issue_scores(s, block);
      wait_for_dout(dout_, block + 1);
      issue_by_queries(acc_dv, p, memory_.dout[dout_.index()]);
      const KeptOfKeys kept = draw(block);
      wgmma::wait<1>();
      wgmma::hold(s);
      finish_scores(s, kept, block, q_.index(), sees_all(block));
      release_queries();
      wgmma::wait<0>();
      wgmma::hold(acc_dv);
      arrive_warp(memory_.barriers.dout_empty[dout_.index()]);
      dout_.advance();
      pack_probabilities(p, s);
    }
    arrive_warp(memory_.barriers.k_empty[k_.index()]);
    k_.advance();
    wait_for_dout(dout_, begin);
    issue_by_queries(acc_dv, p, memory_.dout[dout_.index()]);
    wgmma::wait<0>();
    wgmma::hold(acc_dv);
    arrive_warp(memory_.barriers.dout_empty[dout_.index()]);
    dout_.advance();
  }
  // S^T -> P^T; with dropout, what is dropped has a minus (KeptOfKeys).
  __device__ __forceinline__ void finish_scores(Scores& s, const KeptOfKeys& kept, int block, int stage, bool full) {
    change_scores(s, block);
    exponentiate(s, stage);
    if constexpr (kPolicy.scored) {
      if (args_.drops) kept.mark(s);
    }
    if (!full) hide(s, block);
  }
  __device__ __forceinline__ void release_queries() {
    arrive_warp(memory_.barriers.q_empty[q_.index()]);
    q_.advance();
  }

  // From q_ on, which is not moved.
  __device__ __forceinline__ void issue_scores(Scores& s, int block) {
    Stage<kPolicy.q_stages> at = q_;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece, at.advance()) {
      wait_full(memory_.barriers.q_full[at.index()], at.parity());
      clear_rows_behind<kBlockM, kPolicy.piece_dims()>(memory_.q[at.index()], queries_left(block));
      wgmma::begin();
      issue_by_dims<kPolicy.piece_dims()>(s, memory_.k[k_.index()] + piece * tile_bytes(kBlockN, kPolicy.piece_dims()),
                                          memory_.q[at.index()], piece == 0);
    }
    wgmma::commit();
  }
  __device__ __forceinline__ void wait_for_dout(const Stage<kPolicy.dout_stages>& at, int block) {
    wait_full(memory_.barriers.dout_full[at.index()], at.parity());
    clear_rows_behind<kBlockM, kPolicy.head_dim_v>(memory_.dout[at.index()], queries_left(block));
  }
  __device__ __forceinline__ int queries_left(int block) const {
    return work().tile.sequence.seqlen_q - block * kBlockM;
  }

  // What this thread has added to dq_sum is there.
  __device__ __forceinline__ void await_sums() const { __threadfence(); }
  // All of the tile's sums of dq are there.
  __device__ __forceinline__ void finish_dq() {
    await_sums();
    leave_slope();
    sync_threads(kBoth, 256);
    if (threadIdx.x == 128) {
      write_slope();
      end_turn(work().blocks.begin);
      tile_is_done(args_, work().head_of_all);
    }
  }
  // Whose turn is next may add to dq of the block, if it is one of this tile's.
  __device__ __forceinline__ void end_turn(int block) const {
    if (args_.turns && block < work().blocks.end) atomicAdd(args_.turns + work().dq_block + block, 1);
  }

  // (+)= [this warpgroup's keys, queries], summed over dims.
  template <int kDims>
  __device__ __forceinline__ void issue_by_dims(Scores& x, const unsigned char* keys, const unsigned char* queries,
                                                bool fresh) {
    const wgmma::Operand a(shared_address(keys) + consumer_ * 64 * 128), b(shared_address(queries));
#pragma unroll
    for (int d = 0; d < kDims; d += 16) {
      const int panel = d / wgmma::kPanel, within = d % wgmma::kPanel * 2;
      wgmma::multiply_ss<T, kQueryTiles>(x, a.at(panel * kBlockN * 128 + within), b.at(panel * kBlockM * 128 + within),
                                         fresh && d == 0);
    }
  }
  // += [this warpgroup's keys, dims], summed over queries.
  template <int kTiles>
  __device__ __forceinline__ void issue_by_queries(Fragment<1, kTiles>& acc, const Packed& x,
                                                   const unsigned char* queries) {
    const wgmma::Operand b(shared_address(queries), kBlockM);
    wgmma::begin();
#pragma unroll
    for (int query = 0; query < kBlockM; query += 16) {
      wgmma::multiply_rs<T, kTiles>(acc, x[query / 16], b.at(query * 128));
    }
    wgmma::commit();
  }
  // This warpgroup's part of [queries, dims], summed over the keys of both.
  __device__ __forceinline__ void issue_dq(DqSums& dq, const unsigned char* all_ds) {
    constexpr int kPanelBytes = kBlockN * 128, kPanels = kPolicy.dq_dims() / wgmma::kPanel;
    const uint32_t ds = shared_address(all_ds), k = shared_address(memory_.k[k_.index()]);
    const wgmma::Operand a(kPolicy.parts_dims() ? ds : ds + consumer_ * kPanelBytes);
    // Dims: whole panels, and half of the middle one where their number is odd.
    constexpr int kWhole = kPolicy.parts_dims() ? kPanels / 2 * 8 : kOrder.dim_tiles(),
                  kHalf = kOrder.dim_tiles() - kWhole;
    const wgmma::Operand b(kPolicy.parts_dims() ? k + consumer_ * ((kPanels + 1) / 2) * kPanelBytes : k, kBlockN);
    wgmma::begin();
    if constexpr (kWhole > 0) {
#pragma unroll
      for (int key = 0; key < kBlockN; key += 16) {
        wgmma::multiply_tt<T>(part_of<0, kWhole>(dq), a.at(key * 128), b.at(key * 128), key == 0);
      }
    }
    if constexpr (kHalf > 0) {
      const wgmma::Operand half(k + kPanels / 2 * kPanelBytes + consumer_ * 64, kBlockN);
#pragma unroll
      for (int key = 0; key < kBlockN; key += 16) {
        wgmma::multiply_tt<T>(part_of<kWhole, kHalf>(dq), a.at(key * 128), half.at(key * 128), key == 0);
      }
    }
    wgmma::commit();
  }
  template <int kFirst, int kCount>
  __device__ __forceinline__ static Fragment<1, kCount>& part_of(DqSums& dq) {
    return *reinterpret_cast<Fragment<1, kCount>*>(&dq[0][kFirst]);
  }
  __device__ __forceinline__ void add_dq(float* to, const DqSums& dq) const {
    // The second warpgroup's half panel comes before its whole ones.
    constexpr int kTiles = kOrder.dim_tiles(), kWhole = kPolicy.parts_dims() ? kPolicy.dq_dims() / 128 * 8 : kTiles,
                  kHalf = kTiles - kWhole;
    // Behind head_dim are zeros.
    constexpr int kZeros = (kPolicy.dq_dims() - kPolicy.head_dim) / 8;
    to += (threadIdx.x - 128) * 4;
#pragma unroll
    for (int d = 0; d < kTiles; ++d) {
      if (kZeros > 0 && d >= kTiles - kZeros && consumer_ == 1) break;
      constexpr int kNext = kOrder.of_thread(0, 1);
      const int at = kHalf == 0 || consumer_ == 0 ? d : d < kWhole ? d + kHalf : d - kWhole;
      add_global_4(to + at * kNext, dq[0][d][0], dq[0][d][1], dq[0][d][2], dq[0][d][3]);
    }
  }

  // Scores -> P, as if nothing were masked. Where scores are large, the difference to lse is taken first, of numbers as
  // fp32 holds them, and multiplied by log2(e) then.
  __device__ __forceinline__ void exponentiate(Scores& s, int stage) const {
    if (memory_.large[stage]) {
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m) {
        const float2 lse = pair_of(memory_.lse[stage], m), low = pair_of(memory_.lse_low[stage], m);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float above = __fmul_rn(s[0][m][i], args_.unit.scale) - (i % 2 ? lse.y : lse.x);
          s[0][m][i] = fast_exp2((above - (i % 2 ? low.y : low.x)) * kLog2e);
        }
      }
    } else {
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m) {
        const float2 lse = pair_of(memory_.lse[stage], m);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          s[0][m][i] = fast_exp2(fmaf(s[0][m][i], args_.unit.scale_log2, i % 2 ? -lse.y : -lse.x));
      }
    }
  }
  // Of the lane's two queries of column tile m.
  __device__ __forceinline__ static float2 pair_of(const float (&rows)[kBlockM], int m) {
    return *reinterpret_cast<const float2*>(&rows[lane_column(m)]);
  }
  // dP -> dS
  __device__ __forceinline__ void differentiate(Scores& dp, const Scores& p, int stage) const {
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m) {
      const float2 delta = pair_of(memory_.delta[stage], m);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float prob = p[0][m][i], delta_here = i % 2 ? delta.y : delta.x;
        float& ds = dp[0][m][i];
        if constexpr (kPolicy.scored) {
          ds = fmaf(fmaxf(prob, 0), ds, -fabsf(prob) * delta_here);  // what is dropped has a minus
        } else {
          ds = prob * (ds - delta_here);
        }
      }
    }
  }

  // What happens to scores before the mask; they are in args_.unit then.
  __device__ __forceinline__ void change_scores(Scores& s, int block) {
    if constexpr (kPolicy.scored) {
      const ScoreModifiers& mods = args_.p.mods;
      float scale = args_.scale;
      if (mods.alibi_slopes.data) {
        const float slope = memory_.scored.work[slot_.index()].slope;
        tilt<1, kQueryTiles>(s, scale, block * kBlockM, [&](int row) { return RowTilt{slope, place_of(row)}; });
        scale = 1;
      }
      if (mods.bias.data) add_bias(s, scale);
    }
  }
  // Of key `row` of the warp's, where ALiBi's distances are 0.
  __device__ __forceinline__ float place_of(int row) const {
    return static_cast<float>(work().tile.first + warp_key() - memory_.scored.work[slot_.index()].alibi_shift + row);
  }
  // s = scale * s + bias: ldmatrix lays its transpose out as scores lie, keys, keys + 8, then the next eight queries.
  __device__ __forceinline__ void add_bias(Scores& s, float scale) {
    wait_full(memory_.scored.bias_full[bias_.index()][consumer_], bias_.parity());
    const int thread = thread_again(), lane = thread % 32;
    const int row = args_.has_bias_row ? 0 : lane / 16 * 8 + lane % 8;
    const int chunk = thread % 128 / 32 * 2 + lane / 8 % 2;  // of eight keys
    const uint32_t first = shared_address(memory_.bias[bias_.index() * 2 + consumer_]) + row * 128 +
                           (chunk ^ row % 8) * 16;  // with the 128-byte swizzle
    const int next = args_.has_bias_row ? 0 : 8 * 128;
#pragma unroll
    for (int m = 0; m < kQueryTiles; m += 2) {
      uint32_t bias[4];
      load_matrices_transposed(bias, first + m * next);
      scale_and_add<T, kQueryTiles>(s, scale, m, bias);
    }
    arrive_warp(memory_.scored.bias_empty[bias_.index()][consumer_]);
    bias_.advance();
  }
  // What dropout keeps of a block's P^T; it depends on no score.
  __device__ __forceinline__ KeptOfKeys draw(int block) const {
    KeptOfKeys kept;
    if constexpr (kPolicy.scored) {
      if (args_.drops) {
        const PhiloxKey philox = memory_.scored.philox;
        kept.draw(philox, args_.drop_rule, memory_.scored.work[slot_.index()].drop_head, block * kBlockM,
                  work().tile.first + warp_key());
      }
    }
    return kept;
  }
  // The gradient of the bias is dS, of which each warp writes eight queries.
  __device__ __forceinline__ void store_bias_gradient(const unsigned char* ds, int block) const {
    if constexpr (kPolicy.scored) {
      if (!args_.p.dbias.data) return;
      static_assert(kBlockM == 8 * 4 * kPolicy.kConsumers);
      const HeadTile& tile = work().tile;
      const int warp = thread_again() / 32 - 4;
      const uint32_t from = shared_address(ds);
      store_dbias<T, kBlockN>(
          args_, block * kBlockM + warp * 8, tile.sequence.seqlen_q, tile.rows, ds_factor_,
          [&](int key) { return from + key * 128 + (warp ^ key % 8) * 16; },
          [&](int query) {
            return args_.p.dbias.offset(tile.sequence.index, tile.group, tile.head, query, tile.first);
          });
    }
  }
  __device__ __forceinline__ void add_to_slope(const Scores& ds, int block) {
    if constexpr (kPolicy.scored) {
      if (!args_.slope_parts) return;
      slope_sum_ += distances_times<1, kQueryTiles>(ds, block * kBlockM, [&](int row) { return place_of(row); });
    }
  }
  // Before a barrier of both warpgroups, and by one thread behind it.
  __device__ __forceinline__ void leave_slope() {
    if constexpr (kPolicy.scored) {
      if (!args_.slope_parts) return;
      const float sum = sum_of_warp(slope_sum_);
      if (threadIdx.x % 32 == 0) memory_.scored.warp_slopes[slot_.index()][threadIdx.x / 32 - 4] = sum;
      slope_sum_ = 0;
    }
  }
  __device__ __forceinline__ void write_slope() const {
    if constexpr (kPolicy.scored) {
      if (!args_.slope_parts) return;
      double sum = 0;
      for (const float one : memory_.scored.warp_slopes[slot_.index()]) sum += static_cast<double>(one);
      slope_part(args_, work().head_of_all, work().index) = {sum, work().tile.sequence.index};
    }
  }

  // Whether all of the warpgroup's keys are seen by all of the block's queries.
  // (Behind the last query a bias may be anything.)
  __device__ __forceinline__ bool sees_all(int block) const {
    const int key = work().tile.first + consumer_ * 64, query = block * kBlockM;
    if (kPolicy.scored && queries_left(block) < kBlockM) return false;
    return work().band.is_full({query, query + kBlockM}, {key, key + 64});
  }
  // P and dS: neither may have become 0 times something that is not finite.
  __device__ __forceinline__ void hide(Scores& x, int block) const {
    const Band& band = work().band;
    const int first = work().tile.first + warp_key(), end = work().tile.first + work().tile.rows;
    mask<1, kQueryTiles>(
        x, block * kBlockM,
        [&](int row) {
          const int key = first + row;
          if (key >= end) return Range{0, 0};
          const int last = band.last_query(key) + 1;
          // Behind the last query a bias may be anything.
          return Range{band.first_query(key), kPolicy.scored ? min(last, work().tile.sequence.seqlen_q) : last};
        },
        0);
  }

  // What is kept of P.
  __device__ __forceinline__ static void pack_probabilities(Packed& to, const Scores& x) {
    if constexpr (kPolicy.scored) {
      pack_with(to, x, [](float low, float high) { return pack_positive<T>(low, high); });
    } else {
      pack_all(to, x);
    }
  }
  __device__ __forceinline__ static void pack_all(Packed& to, const Scores& x) {
    pack_with(to, x, [](float low, float high) { return pack<T>(low, high); });
  }
  template <class Pack>
  __device__ __forceinline__ static void pack_with(Packed& to, const Scores& x, const Pack& pack_pair) {
#pragma unroll
    for (int m = 0; m < kBlockM / 16; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const at = &x[0][2 * m + i / 2][i % 2 * 2];
        to[m][i] = pack_pair(at[0], at[1]);
      }
  }
  // Of the warp's 16 keys, to shared memory as dQ wants it: rows of 64 queries, swizzled as copies are.
  __device__ __forceinline__ void store_ds(const Packed& ds, unsigned char* all_ds) const {
    const int lane = threadIdx.x % 32, row = warp_key() + lane % 16;
    const uint32_t to = shared_address(all_ds) + row * 128;
#pragma unroll
    for (int m = 0; m < kBlockM / 16; ++m) {
      const int chunk = (m % 4 * 2 + lane / 16) ^ row % 8;
      store_matrices(to + m / 4 * kBlockN * 128 + chunk * 16, ds[m]);
    }
    fence_shared_for_async();
  }

  // Behind the last row of a packed sequence lie a neighbour's, which may be anything: what they are multiplied by is
  // 0, but 0 times infinity is not. Every warpgroup clears them for itself.
  template <int kRows, int kDims>
  __device__ __forceinline__ void clear_rows_behind(unsigned char* tile, int rows) {
    if (!args_.p.seq.packed() || rows >= kRows) return;
    constexpr int kChunks = panels_of(kDims) * 8;  // of 16 bytes, per row; which is which doesn't matter
    for (int i = threadIdx.x % 128; i < (kRows - rows) * kChunks; i += 128) {
      const int row = rows + i / kChunks, chunk = i % kChunks;
      store_shared_16(shared_address(tile) + chunk / 8 * kRows * 128 + row * 128 + chunk % 8 * 16, {0, 0, 0, 0});
    }
    fence_shared_for_async();
    sync_threads(kMine + consumer_, 128);
  }

  template <int kTiles>
  __device__ __forceinline__ void write_keys(const HeadsTensor& tensor, int64_t dims, const Fragment<1, kTiles>& acc,
                                             int first_dim, float factor) {
    const HeadTile& tile = work().tile;
    T* const to =
        static_cast<T*>(tensor.data) + tile.offset(tensor) + (tile.sequence.k_begin + tile.first) * tensor.seq_stride;
    write_sums(to, tensor.seq_stride, tile.rows, dims, args_.aligned_dkv, acc, warp_key(), first_dim / kChunk, factor);
  }

  __device__ __forceinline__ static void clear_all(DkSums& acc) {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) clear<1, kPolicy.piece_dims() / 8>(acc[piece]);
  }
  __device__ __forceinline__ static void multiply_all_by(DkSums& acc, float factor) {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) multiply<1, kPolicy.piece_dims() / 8>(acc[piece], factor);
  }
  // The largest of both warpgroups.
  __device__ __forceinline__ float max_of_both(float x, float (&all)[8]) const {
    x = max_of_warp(x);
    if (threadIdx.x % 32 == 0) all[threadIdx.x / 32 % 8] = x;
    sync_threads(kBoth, 256);
#pragma unroll
    for (const float one : all) x = fmaxf(x, one);
    return x;
  }
  // fp16: whether any dS of the tile may be beyond its range (ds_bound).
  __device__ __forceinline__ void find_range() {
    if constexpr (kMayOverflow<T>) {
      const AttentionBwdParams& p = args_.p;
      const int begin = static_cast<int>(work().tile.sequence.q_begin), first = begin + work().blocks.begin * kBlockM,
                last = begin + min(work().blocks.end * kBlockM, work().tile.sequence.seqlen_q) - 1;
      const RowExtremes* const rows =
          args_.extremes + work().head_of_all * ceil_div<int64_t>(p.shape.seqlen_q, kStatisticsRows);
      float dout = 0;
#pragma unroll 1
      for (int i = first / kStatisticsRows + threadIdx.x % 256; i <= last / kStatisticsRows; i += 256) {
        dout = fmaxf(dout, rows[i].dout);
      }
      dout = max_of_both(dout, memory_.warp_extremes[0]);
      const float v =
          max_of_both(largest_of<256>(memory_.v[beside_k(v_).index()], threadIdx.x % 256), memory_.warp_extremes[1]);
      may_overflow_ = ds_bound(dout, v, fmaxf(static_cast<float>(args_.kept), 1)) >= kMostOfFp16;
    }
  }
  // Times a factor, as what is summed up to dK is from now on.
  __device__ __forceinline__ void bring_into_range(Scores& ds, DkSums& acc_dk) {
    wgmma::wait<0>();
    const float factor = factor_of(max_of_both(largest_finite(ds), memory_.warp_extremes[0]));
    if (factor != ds_factor_) multiply_all_by(acc_dk, factor / ds_factor_);
    if (factor != 1) multiply(ds, factor);
    ds_factor_ = factor;
  }

  const BwdGrid& args_;
  Memory& memory_;
  int consumer_;
  bool may_overflow_ = false;  // fp16: any dS of the tile
  float ds_factor_ = 1;        // of dS, and of what it is summed up to
  Stage<kBwdWorkSlots> slot_;
  Stage<kPolicy.k_stages> k_;
  Stage<kPolicy.v_stages> v_;
  Stage<kPolicy.q_stages> q_;
  Stage<kPolicy.dout_stages> dout_;
  Stage<kPolicy.ds_stages> ds_;
  float slope_sum_ = 0;  // this lane's, of dS * distance
  Stage<kPolicy.scored ? kPolicy.bias_stages : 1> bias_;
};

}  // namespace xformers::cuda::sm90
