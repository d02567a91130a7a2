// Forward under a block mask: the producer's second warp walks over the steps in which some row of the tile sees
// something (block_walk.cuh), and leaves in shared memory what they show; consumers multiply those of them that their
// rows see:
//
//   for every stretch of steps that the warpgroup sees:  the loop of fwd_consumer.cuh
//   between them:                                        K and V are passed by
//
// Of a step, squares of 16 keys that no row of the tile sees are not copied: they are zeros.
#pragma once

#include "xformers/kernels/cuda/attention/sm90/fwd_consumer.cuh"
#include "xformers/kernels/cuda/attention/sm90/fwd_producer.cuh"

namespace xformers::cuda::sm90 {

// By a warp, whose lanes each have boxes copied.
template <int kPolicyIndex>
class BlockedLoader : Loader<kPolicyIndex, true> {
  static constexpr FwdPolicy kPolicy = kFwdPolicies[kPolicyIndex];
  using Base = Loader<kPolicyIndex, true>;
  using Memory = FwdMemory<kPolicyIndex>;

 public:
  __device__ __forceinline__ BlockedLoader(const FwdGrid& args, Memory& memory) : Base(args, memory) {}

  __device__ __forceinline__ void run() {
    this->for_each_tile([&](const FwdWork& work, int) { load(work); });
  }

 private:
  using Base::args_, Base::memory_, Base::k_, Base::v_;

  struct Step {
    int index;
    uint32_t seen;  // squares of 16 keys, by any row
  };

  __device__ __forceinline__ void load(const FwdWork& work) {
    const HeadTile& tile = work.tile;
    memory_.walk.start(args_.p.blocks, static_cast<int>(tile.sequence.batch), tile.group, tile.head, tile.first,
                       tile.first + tile.rows, work.blocks);
    const int end = work.blocks.end;
    Step step = find();
    if (step.index < end) load_k(work, step);
    this->load_q(work.q);
#pragma unroll 1
    while (step.index < end) {
      const Step next = find();
      if (next.index < end) load_k(work, next);
      load_v(work, step);
      step = next;
    }
  }

  // The next step, which consumers then know too; behind the last one, that there is none.
  __device__ __forceinline__ Step find() {
    wait_empty(memory_.step_empty[at_.index()], at_.parity());
    memory_.walk.find(args_.p.blocks, at_.index());
    const auto& found = memory_.walk.at(at_.index());
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const uint32_t mine = lane < kPolicy.block_m() / kSquare ? found.seen[lane] : 0;
    const Step step{found.index, __reduce_or_sync(kAllLanes, mine)};
    arrive_warp(memory_.step_full[at_.index()]);
    at_.advance();
    return step;
  }

  __device__ __forceinline__ void load_k(const FwdWork& work, const Step& step) {
    wait_empty(memory_.barriers.k_empty[k_.index()], k_.parity());
    copy_seen<kPolicy.head_dim>(memory_.k[k_.index()], args_.k_map, work.k, step, memory_.barriers.k_full[k_.index()]);
    k_.advance();
  }
  __device__ __forceinline__ void load_v(const FwdWork& work, const Step& step) {
    wait_empty(memory_.barriers.v_empty[v_.index()], v_.parity());
    copy_seen<kPolicy.head_dim_v>(memory_.v[v_.index()], args_.v_map, work.v, step,
                                  memory_.barriers.v_full[v_.index()]);
    v_.advance();
  }
  // A box for every `part` keys, which lie in one block. Rows behind the last one are zeros.
  template <int kDims>
  __device__ __forceinline__ void copy_seen(unsigned char* to, const CUtensorMap& map, const RowsPlace& at,
                                            const Step& step, uint64_t& barrier) const {
    constexpr int kRows = kPolicy.block_n, kPanels = panels_of(kDims);
    const int lane = static_cast<int>(threadIdx.x) % 32, part = args_.page_part;
    if (lane == 0) mbarrier::arrive_expecting(shared_address(&barrier), tile_bytes(kRows, kDims));
    __syncwarp();
#pragma unroll 1
    for (int box = lane; box < kRows / part * kPanels; box += 32) {
      const int row = box / kPanels * part, panel = box % kPanels;
      const bool seen = step.seen >> row / kSquare & 1;
      const int from = seen ? at.row + step.index * kRows + row : static_cast<int>(args_.p.shape.seqlen_k);
      copy_box(shared_address(to + panel * kRows * 128 + row * 128), map,
               {{panel * wgmma::kPanel, from, at.head, at.group, at.batch}}, shared_address(&barrier),
               L2Keep::kLastOut);
    }
  }

  Stage<Memory::kSteps> at_;
};

template <class T, int kPolicyIndex>
class BlockedConsumer : Consumer<T, kPolicyIndex> {
  static constexpr FwdPolicy kPolicy = kFwdPolicies[kPolicyIndex];
  static constexpr int kKeyTiles = kPolicy.block_n / 8, kDimTiles = kPolicy.head_dim_v / 8;
  static constexpr int kSquares = kPolicy.block_n / kSquare;
  using Base = Consumer<T, kPolicyIndex>;
  using Memory = FwdMemory<kPolicyIndex>;
  using typename Base::Output, typename Base::Probabilities, typename Base::Scores;

 public:
  __device__ __forceinline__ BlockedConsumer(const FwdGrid& args, Memory& memory, int consumer)
      : Base(args, memory, consumer) {}

  __device__ __forceinline__ void run() {
    if (kPolicy.turns && consumer_ == kPolicy.consumers - 1) turns_.pass_on();
    Scores s;
    Probabilities p;
    Output acc_o;
    RowValues<1> shrink;
    for (; this->find_tile(); slot_.advance()) {
      SoftmaxRows<1> softmax;
      clear<1, kDimTiles>(acc_o);
#pragma unroll 1
      while (seek()) {
        wait_for_turn();
        this->issue_scores(s);
        pass_on_turn();
        wgmma::wait<0>();
        wgmma::hold(s);
        hide(s);
        if (this->step_ahead(softmax, s, shrink)) rescale<1, kDimTiles>(acc_o, shrink);
        release_step();
        this->to_probabilities(p, s);
#pragma unroll 1
        while (is_seen()) {
          wait_for_turn();
          this->issue_scores(s);
          this->issue_output(acc_o, p);
          pass_on_turn();
          wgmma::wait<1>();
          wgmma::hold(s);
          hide(s);
          bool raised = false;
          if (!kPolicy.near || !near_ || !softmax.template step_near<kKeyTiles>(s, args_.unit, this->any_of_group())) {
            if (kPolicy.near && near_) scores_again(s);
            raised = this->step_ahead(softmax, s, shrink);
          }
          release_step();
          wgmma::wait<0>();
          wgmma::hold(acc_o);
          this->release_output();
          if (raised) rescale<1, kDimTiles>(acc_o, shrink);
          this->to_probabilities(p, s);
        }
        wait_for_turn();
        this->issue_output(acc_o, p);
        pass_on_turn();
        wgmma::wait<0>();
        wgmma::hold(acc_o);
        this->release_output();
      }
      arrive_warp(memory_.barriers.q_empty[q_.index()]);
      q_.advance();
      softmax.finish();
      write_results<T, kDimTiles, false>(args_, this->work().tile, this->warp_row(this->work()), acc_o, softmax);
      arrive_warp(memory_.barriers.work_empty[slot_.index()]);
    }
  }

 private:
  using Base::args_, Base::consumer_, Base::k_, Base::memory_, Base::near_, Base::q_, Base::slot_, Base::turns_,
      Base::v_;

  __device__ __forceinline__ void wait_for_turn() const {
    if constexpr (kPolicy.turns) turns_.wait();
  }
  __device__ __forceinline__ void pass_on_turn() const {
    if constexpr (kPolicy.turns) turns_.pass_on();
  }

  __device__ __forceinline__ const auto& step() const { return memory_.walk.at(at_.index()); }

  // Whether there is a next step, and the warpgroup sees some of it. (Who takes turns has to take all of them.)
  __device__ __forceinline__ bool is_seen() const {
    wait_full(memory_.step_full[at_.index()], at_.parity());
    if (step().index >= this->end_block_) return false;
    if constexpr (kPolicy.turns) return true;
    uint32_t seen = 0;
#pragma unroll
    for (int line = 0; line < 4; ++line) seen |= step().seen[consumer_ * 4 + line];
    return seen != 0;
  }
  // Goes on to the next step that is. False: there are no more.
  __device__ __forceinline__ bool seek() {
    for (;;) {
      if (is_seen()) return true;
      const bool ends = step().index >= this->end_block_;
      arrive_warp(memory_.step_empty[at_.index()]);
      at_.advance();
      if (ends) return false;
      wait_full(memory_.barriers.k_full[k_.index()], k_.parity());
      arrive_warp(memory_.barriers.k_empty[k_.index()]);
      k_.advance();
      wait_full(memory_.barriers.v_full[v_.index()], v_.parity());
      arrive_warp(memory_.barriers.v_empty[v_.index()]);
      v_.advance();
    }
  }
  // Its scores are done: K and what is known about it.
  __device__ __forceinline__ void release_step() {
    arrive_warp(memory_.barriers.k_empty[k_.index()]);
    k_.advance();
    arrive_warp(memory_.step_empty[at_.index()]);
    at_.advance();
  }

  __device__ __forceinline__ void scores_again(Scores& s) {
    wgmma::wait<0>();
    this->issue_scores(s);
    wgmma::wait<0>();
    wgmma::hold(s);
    hide(s);
  }

  // What the band and the blocks hide of the step. A warp's 16 rows are one line of squares.
  __device__ __forceinline__ void hide(Scores& s) const {
    this->score_mask(s, step().index);
    const int line = consumer_ * 4 + static_cast<int>(threadIdx.x) % 128 / 32;
    const uint32_t seen = step().seen[line], partial = step().partial[line];
    if (seen == all_squares(kSquares) && partial == 0) return;
    mask_squares<1, kKeyTiles>(s, [&](int row, int square) -> uint32_t {
      if (!(partial >> square & 1)) return seen >> square & 1 ? kWholeSquare : 0;
      return memory_.walk.keys_of(args_.p.blocks, at_.index(), line, square, row);
    });
  }

  Stage<Memory::kSteps> at_;
};

}  // namespace xformers::cuda::sm90
