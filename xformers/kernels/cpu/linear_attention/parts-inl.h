// Where there are fewer heads than threads, the tokens of a head are cut into parts of whole chunks, which threads
// take. What lies between parts is a state: each part sums up its own, those are joined in turn, then each part goes on
// from the one before it (as a chunked scan does).
#pragma once

#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/cpu/linear_attention/state-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// Of a head's tokens.
struct Part {
  int64_t index = 0, count = 1;

  HWY_INLINE bool first() const { return index == 0; }
  HWY_INLINE bool last() const { return index + 1 == count; }
  // The tokens of [0, tokens) before this part and the later ones: a multiple of kTokens.
  HWY_INLINE int64_t begin(int64_t tokens) const {
    return min_of(tokens, (tokens + kTokens - 1) / kTokens * index / count * kTokens);
  }
  HWY_INLINE int64_t end(int64_t tokens) const { return last() ? tokens : Part{index + 1, count}.begin(tokens); }
};

// How many for each head. Summing up states first is a third of the forward's work again: no head is cut while there is
// another for every thread, nor into less than four chunks.
HWY_INLINE int64_t parts_of(const LinearAttentionShape& shape, const Threads& threads) {
  const int64_t heads = shape.num_sequences * shape.num_heads;
  if (heads == 0 || heads >= threads.num_threads) return 1;
  const int64_t tokens = max_of(shape.seqlen_q, shape.seqlen_k) / (shape.cu_seqlens ? shape.num_sequences : 1);
  return max_of(1, min_of(threads.num_threads / heads, tokens / (4 * kTokens)));
}

// A state between parts, or a part's own.
template <class C>
struct PartState {
  LinearState<C> state;
  C *decay = nullptr, *shift = nullptr;  // over the part; of its keys
  double* sum = nullptr;                 // of the gradients of its decays

  HWY_INLINE void lay_out(Arena& arena, const LinearAttentionShape& shape) {
    state.lay_out(arena, shape);
    decay = arena.take<C>(1);
    shift = arena.take<C>(1);
    sum = arena.take<double>(1);
  }
};

// Two of them for every part of every head: of S and of its gradient D.
template <class C>
class PartStates {
 public:
  PartStates(const LinearAttentionShape& shape, int64_t parts) : shape_(shape), parts_(parts) {
    Arena arena;
    PartState<C>().lay_out(arena, shape);
    each_ = arena.bytes();
  }
  size_t bytes() const { return parts_ == 1 ? 0 : 2 * each_ * shape_.num_sequences * shape_.num_heads * parts_; }
  void place(char* memory) { memory_ = memory; }

  int64_t parts() const { return parts_; }
  PartState<C> s(int64_t head, int64_t part) const { return at(2 * (head * parts_ + part)); }
  PartState<C> d(int64_t head, int64_t part) const { return at(2 * (head * parts_ + part) + 1); }

 private:
  PartState<C> at(int64_t index) const {
    Arena arena(memory_ + index * each_);
    PartState<C> result;
    result.lay_out(arena, shape_);
    return result;
  }

  const LinearAttentionShape& shape_;
  int64_t parts_;
  size_t each_ = 0;
  char* memory_ = nullptr;
};

// s(p), the sum over part p, becomes the state after it.
template <class C>
HWY_NOINLINE void join_onwards(const PartStates<C>& states, int64_t head) {
  for (int64_t p = 1; p < states.parts(); ++p) {
    const PartState<C> part = states.s(head, p);
    part.state.add_scaled(states.s(head, p - 1).state, *part.decay);
  }
}

// d(p), what part p asks of the state before it, becomes what all from p on ask.
template <class C>
HWY_NOINLINE void join_backwards(const PartStates<C>& states, int64_t head) {
  for (int64_t p = states.parts() - 2; p >= 0; --p) {
    const PartState<C> part = states.d(head, p);
    part.state.add_scaled(states.d(head, p + 1).state, *part.decay);
  }
}

// s(0) becomes the sum over all keys, in the units of their common shift.
template <class C>
HWY_NOINLINE void join_keys(const PartStates<C>& states, int64_t head) {
  C* const shift = states.s(head, 0).shift;
  C largest = *shift;
  for (int64_t p = 1; p < states.parts(); ++p) {
    const C own = *states.s(head, p).shift;
    largest = own > largest ? own : largest;
  }
  const auto factor = [&](C of) {
    return of == largest ? C(1) : hn::GetLane(exp_anywhere<C>(hn::Set(Tag<C>(), of - largest)));
  };
  LinearState<C> total = states.s(head, 0).state;
  total.scale(factor(*shift));
  for (int64_t p = 1; p < states.parts(); ++p) {
    const PartState<C> part = states.s(head, p);
    total.add_scaled(part.state, factor(*part.shift));
  }
  *shift = largest;
}

// d(0) becomes the sum over all queries.
template <class C>
HWY_NOINLINE void join_queries(const PartStates<C>& states, int64_t head) {
  LinearState<C> total = states.d(head, 0).state;
  for (int64_t p = 1; p < states.parts(); ++p) total.add_scaled(states.d(head, p).state, C(1));
}

// sum of d(p), over part p, becomes that over all later parts.
template <class C>
HWY_NOINLINE void join_decays(const PartStates<C>& states, int64_t head) {
  double later = 0;
  for (int64_t p = states.parts() - 1; p >= 0; --p) {
    double* const sum = states.d(head, p).sum;
    const double own = *sum;
    *sum = later;
    later += own;
  }
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
