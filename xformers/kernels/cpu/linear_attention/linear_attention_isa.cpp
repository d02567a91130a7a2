// Linear attention of one sequence and head per task, or of a part of its tokens where there are fewer than threads
// (parts-inl.h), in chunks of 64 tokens, features feature-major. Compiled once per instruction set.
//
//   causal forward, per chunk:  q', k' from x and omega;  out = q'^T S,  A^T = k'^T q' (j <= i),  out += A v,  S += k'
//   v causal backward, forwards:  dq' = S g^T,  dA^T = v g^T (j <= i),  dq' += k' dA^T;  dq through omega;  S += k' v
//                    from the end, with D the gradient of S:  dk' = D v^T + q' dA,  dv = k'^T D + A^T g,  D += q' g
//   every j:  S over all keys first, then queries; backward: queries give dq and D, then keys dk and dv
//
// g is the gradient of the numerator. A chunk in which a number is not finite is done token by token, so that 0 times
// it reaches no earlier row.
#include <cmath>

#include "xformers/kernels/cpu/base/scratch.h"
#include "xformers/kernels/cpu/linear_attention/features-inl.h"
#include "xformers/kernels/cpu/linear_attention/linear_attention_cpu.h"
#include "xformers/kernels/cpu/linear_attention/parts-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {
namespace {

// The tokens of a sequence.
struct Span {
  int64_t batch, begin, queries, keys;
};
Span span_of(const LinearAttentionShape& shape, int64_t sequence) {
  if (!shape.cu_seqlens) return {sequence, 0, shape.seqlen_q, shape.seqlen_k};
  const int64_t begin = shape.cu_seqlens[sequence], count = shape.cu_seqlens[sequence + 1] - begin;
  return {0, begin, count, count};
}

// What both passes have of one sequence and head, or of a part of its tokens.
template <class C>
class Head {
 public:
  void begin(int64_t sequence_and_head, Part part) {
    index_ = sequence_and_head;
    head_ = index_ % shape_.num_heads;
    span_ = span_of(shape_, index_ / shape_.num_heads);
    part_ = part;
    state_index_ = index_ * shape_.num_features * shape_.state_width();
    begin_state(in_.state);
  }

 protected:
  Head(const LinearAttentionShape& shape, const LinearAttentionInputs& in)
      : shape_(shape),
        in_(in),
        features_(shape, in.omega, std::pow(static_cast<double>(shape.head_dim), -0.25),
                  0.5 * std::log(static_cast<double>(shape.num_features))),
        width_(round_up(shape.head_dim_v, kTile)) {}

  void lay_out_head(Arena& arena, bool backward) {
    features_.lay_out(arena);
    decay_.lay_out(arena, in_.log_decay != nullptr, backward);
    state_.lay_out(arena, shape_);
    q_ = arena.take<C>(Features<C>::size(shape_));
    k_ = arena.take<C>(Features<C>::size(shape_));
    v_ = arena.take<C>(kTokens * width_);
    rows_ = arena.take<C>(kTokens * width_);
    weights_ = arena.take<C>(kTokens * kTokens);
    totals_ = arena.take<C>(kTokens);
    for (ptrdiff_t i = 0; totals_ && i < kTokens; ++i) totals_[i] = 0;
  }

  // From what came before, or nothing.
  void begin_state(const void* before) {
    shift_ = shifts() && !before ? -static_cast<C>(__builtin_inf()) : C(0);
    state_.load(before ? static_cast<const C*>(before) + state_index_ : nullptr);
  }

  // Whether features of keys are divided by a factor that they share.
  bool shifts() const { return !shape_.causal && shape_.normalize && features_.made(); }
  C shift_factor(int sign) const {
    return shifts() ? static_cast<C>(std::exp(sign * static_cast<double>(shift_))) : C(1);
  }

  TokenRange tokens(int64_t first, ptrdiff_t count) const { return {span_.batch, head_, span_.begin + first, count}; }

  // Of [batch, seqlen, heads]: the element of the first token, and where it lies.
  int64_t number_at(const TokenRange& t, int64_t seqlen) const {
    return (t.batch * seqlen + t.begin) * shape_.num_heads + t.head;
  }

  template <class Fn>
  void for_each_chunk(int64_t count, const Fn& fn) const {
    const int64_t end = part_.end(count);
    for (int64_t first = part_.begin(count); first < end; first += kTokens) {
      fn(tokens(first, min_of(kTokens, end - first)));
    }
  }
  template <class Fn>
  void for_each_chunk_backwards(int64_t count, const Fn& fn) const {
    const int64_t begin = part_.begin(count), end = part_.end(count);
    for (int64_t first = round_up(end, kTokens) - kTokens; first >= begin; first -= kTokens) {
      fn(tokens(first, min_of(kTokens, end - first)));
    }
  }

  HWY_NOINLINE bool finite(const TokenRange& t) const {
    return t.count == 1 || (all_finite<C>(shape_.dtype, in_.q, t, shape_.head_dim) &&
                            all_finite<C>(shape_.dtype, in_.k, t, shape_.head_dim) &&
                            all_finite<C>(shape_.dtype, in_.v, t, shape_.head_dim_v));
  }

  HWY_NOINLINE void load_values(const TokenRange& t) { load_tokens<C>(shape_.dtype, in_.v, t, shape_.head_dim_v, v_); }
  HWY_NOINLINE void load_decay(const TokenRange& t) {
    if (in_.log_decay)
      decay_.fill(static_cast<const C*>(in_.log_decay) + number_at(t, shape_.seqlen_k), shape_.num_heads, t);
  }

  // weights_ [j][i] = w_ij / exp(...) for i >= j, 0 below: the features' products, with decay.
  HWY_NOINLINE void fill_weights(const TokenRange& t) {
    for (ptrdiff_t r = 0; r < t.count; r += kTile) {
      product<C>(weights_ + r * kTokens + r, kTokens, {k_ + r, 1, kTokens}, q_ + r, kTokens, min_of(kTile, t.count - r),
                 t.padded() - r, features_.count(), false);
    }
    finish_upper(weights_, t, nullptr);
  }
  // Of rows j that are computed from column j / kTile * kTile on: += addend[i], times decay; 0 before column j.
  HWY_NOINLINE void finish_upper(C* rows, const TokenRange& t, const C* addend) const {
    const Tag<C> d;
    for (ptrdiff_t j = 0; j < t.count; ++j) {
      C* const row = rows + j * kTokens;
      for (ptrdiff_t i = j / kTile * kTile; i < t.padded() && (addend || decay_.there); i += lanes<C>()) {
        auto x = hn::LoadU(d, row + i);
        if (addend) x = hn::Add(x, hn::LoadU(d, addend + i));
        if (decay_.there) x = hn::Mul(x, hn::LoadU(d, decay_.pairs + j * kTokens + i));
        hn::StoreU(x, d, row + i);
      }
      zero_row(row, j);
    }
  }

  // The state takes in k_ and v_ (which decay).
  HWY_NOINLINE void update_state(const TokenRange& t) {
    if (decay_.there) {
      state_.scale(decay_.all);
      for (ptrdiff_t j = 0; j < t.count; ++j) scale_row(v_ + j * width_, decay_.out[j], width_);
    }
    state_.add(k_, v_, decay_.out, t);
  }

  // The state of all keys, not causal.
  HWY_NOINLINE void sum_keys() {
    for_each_chunk(span_.keys, [&](const TokenRange& t) {
      if (shifts()) {
        const C factor = features_.keys_and_shift(in_.k, t, &shift_, k_);
        state_.scale(factor);
      } else {
        features_.keys(in_.k, t, 0, k_);
      }
      load_values(t);
      update_state(t);
    });
  }

  // The state that a part's keys add, in s(part).
  HWY_NOINLINE void sum_part(const PartStates<C>& states) {
    if (!part_.first()) begin_state(nullptr);
    const PartState<C> sum = states.s(index_, part_.index);
    *sum.decay = 1;
    if (shape_.causal) {
      for_each_chunk(span_.keys, [&](const TokenRange& t) {
        features_.keys(in_.k, t, 0, k_);
        load_values(t);
        load_decay(t);
        update_state(t);
        *sum.decay *= decay_.all;
      });
    } else {
      sum_keys();
    }
    *sum.shift = shift_;
    sum.state.copy(state_);
  }
  // Goes on from s(part - 1), joined; not causal: from s(0), which has all keys.
  HWY_NOINLINE void take_state(const PartStates<C>& states) {
    if (shape_.causal && part_.first()) return;
    const PartState<C> from = states.s(index_, shape_.causal ? part_.index - 1 : 0);
    state_.copy(from.state);
    shift_ = *from.shift;
  }

  const LinearAttentionShape& shape_;
  const LinearAttentionInputs& in_;
  Features<C> features_;
  DecayWeights<C> decay_;
  LinearState<C> state_;
  ptrdiff_t width_;
  C *q_ = nullptr, *k_ = nullptr;             // features
  C *v_ = nullptr, *rows_ = nullptr;          // [kTokens, width]
  C *weights_ = nullptr, *totals_ = nullptr;  // [kTokens, kTokens], [kTokens]
  Span span_{};
  Part part_;
  int64_t index_ = 0, head_ = 0, state_index_ = 0;
  C shift_ = 0;
};

template <class C>
class ForwardHead : Head<C> {
  using Base = Head<C>;
  using Base::decay_, Base::features_, Base::in_, Base::k_, Base::part_, Base::q_, Base::rows_, Base::shape_,
      Base::span_, Base::state_, Base::totals_, Base::v_, Base::weights_, Base::width_;

 public:
  using Base::begin;
  static constexpr int kPhases = 2;  // of a head in parts

  explicit ForwardHead(const LinearAttentionFwdParams& params) : Base(params.shape, params.in), p_(params) {}
  size_t lay_out(void* memory) {
    Arena arena(memory);
    Base::lay_out_head(arena, false);
    return arena.bytes();
  }

  void run() {
    if (!shape_.causal) Base::sum_keys();
    write_rows();
  }

  void run_phase(int phase, const PartStates<C>& states) {
    if (phase == 0) return Base::sum_part(states);
    Base::take_state(states);
    write_rows();
  }
  static void join(int phase, const LinearAttentionFwdParams& p, const PartStates<C>& states, int64_t head) {
    if (phase == 0) p.shape.causal ? join_onwards(states, head) : join_keys(states, head);
  }

 private:
  // From the state before these tokens; not causal: of all keys.
  void write_rows() {
    if (shape_.causal) {
      Base::for_each_chunk(span_.queries, [&](const TokenRange& t) {
        if (Base::finite(t)) return causal_chunk(t);
        for (ptrdiff_t i = 0; i < t.count; ++i) causal_chunk({t.batch, t.head, t.begin + i, 1});
      });
    } else {
      Base::for_each_chunk(span_.queries, [&](const TokenRange& t) {
        features_.queries(in_.q, t, q_);
        state_.read(q_, t, rows_, totals_);
        finish(t);
      });
    }
    if (p_.final_state && part_.last()) {
      state_.store(static_cast<C*>(p_.final_state) + Base::state_index_, Base::shift_factor(1));
    }
  }

  HWY_NOINLINE void causal_chunk(const TokenRange& t) {
    features_.keys(in_.k, t, 0, k_);
    features_.queries(in_.q, t, q_);
    Base::load_values(t);
    Base::load_decay(t);
    state_.read(q_, t, rows_, totals_);
    if (decay_.there) {
      for (ptrdiff_t i = 0; i < t.count; ++i) {
        scale_row(rows_ + i * width_, decay_.in[i], width_);
        totals_[i] *= decay_.in[i];
      }
    }
    Base::fill_weights(t);
    for (ptrdiff_t r = 0; r < t.count; r += kTile) {
      const ptrdiff_t rows = min_of(kTile, t.count - r);
      product<C>(rows_ + r * width_, width_, {weights_ + r, 1, kTokens}, v_, width_, rows, width_, r + rows, true);
    }
    for (ptrdiff_t j = 0; shape_.normalize && j < t.count; ++j) {
      const ptrdiff_t begin = j / kTile * kTile;
      add_row(totals_ + begin, weights_ + j * kTokens + begin, C(1), t.padded() - begin);
    }
    finish(t);
    Base::update_state(t);
  }

  HWY_NOINLINE void finish(const TokenRange& t) {
    const auto factor = [&](ptrdiff_t i) -> C {
      return !shape_.normalize ? C(1) : totals_[i] == C(0) ? C(0) : C(1) / totals_[i];
    };
    store_tokens(shape_.dtype, p_.out, t, shape_.head_dim_v, rows_, factor);
    if (!shape_.normalize) return;
    C* const denominator = static_cast<C*>(p_.denominator) + Base::number_at(t, shape_.seqlen_q);
    for (ptrdiff_t i = 0; i < t.count; ++i) denominator[i * shape_.num_heads] = totals_[i];
  }

  const LinearAttentionFwdParams& p_;
};

template <class C>
class BackwardHead : Head<C> {
  using Base = Head<C>;
  using Base::decay_, Base::features_, Base::in_, Base::index_, Base::k_, Base::part_, Base::q_, Base::rows_,
      Base::shape_, Base::span_, Base::state_, Base::totals_, Base::v_, Base::weights_, Base::width_;

 public:
  using Base::begin;
  static constexpr int kPhases = 3;  // of a head in parts

  explicit BackwardHead(const LinearAttentionBwdParams& params) : Base(params.shape, params.in), p_(params) {}
  size_t lay_out(void* memory) {
    Arena arena(memory);
    Base::lay_out_head(arena, true);
    dstate_.lay_out(arena, shape_);
    df_ = arena.take<C>(Features<C>::size(shape_));
    g_ = arena.take<C>(kTokens * width_);
    gt_ = arena.take<C>(width_ * kTokens);
    vt_ = arena.take<C>(width_ * kTokens);
    dweights_ = arena.take<C>(kTokens * kTokens);
    sums_ = arena.take<C>(kTokens);
    return arena.bytes();
  }

  void run() {
    if (shape_.causal) {
      begin_gradient(p_.dfinal_state);
      return causal_tokens();
    }
    Base::sum_keys();
    begin_gradient(p_.dfinal_state);
    all_queries();
    all_keys();
  }

  // Causal: S and D of each part; the part; the gradients of decays. Else: S, the queries, the keys.
  void run_phase(int phase, const PartStates<C>& states) {
    if (phase == 0) {
      Base::sum_part(states);
      if (shape_.causal) sum_gradient(states);
      return;
    }
    if (shape_.causal && phase == 2) {
      if (p_.dlog_decay) add_to_decays(*states.d(index_, part_.index).sum);
      return;
    }
    Base::take_state(states);
    if (shape_.causal) {
      begin_gradient(part_.last() ? p_.dfinal_state : nullptr);
      if (!part_.last()) dstate_.copy(states.d(index_, part_.index + 1).state);
      causal_tokens();
      *states.d(index_, part_.index).sum = decay_gradient_;
    } else if (phase == 1) {
      begin_gradient(part_.first() ? p_.dfinal_state : nullptr);
      all_queries();
      states.d(index_, part_.index).state.copy(dstate_);
    } else {
      dstate_.copy(states.d(index_, 0).state);
      all_keys();
    }
  }
  static void join(int phase, const LinearAttentionBwdParams& p, const PartStates<C>& states, int64_t head) {
    if (phase == 0) {
      if (!p.shape.causal) return join_keys(states, head);
      join_onwards(states, head);
      join_backwards(states, head);
    } else if (phase == 1) {
      p.shape.causal ? join_decays(states, head) : join_queries(states, head);
    }
  }

 private:
  // D starts as what the final state's gradient asks, in the units of S.
  void begin_gradient(const void* dfinal) {
    dstate_.load(dfinal ? static_cast<const C*>(dfinal) + Base::state_index_ : nullptr, Base::shift_factor(1));
    decay_gradient_ = 0;
  }

  // From the state before these tokens and D behind them.
  void causal_tokens() {
    Base::for_each_chunk(span_.queries, [&](const TokenRange& t) {
      whole_or_single(t, false, [&](const TokenRange& part) { causal_queries(part); });
    });
    if (p_.dlog_decay && p_.dfinal_state && part_.last()) decay_gradient_ = inner_product(state_, dstate_);
    Base::for_each_chunk_backwards(span_.keys, [&](const TokenRange& t) {
      whole_or_single(t, true, [&](const TokenRange& part) { causal_keys(part); });
    });
    store_state_gradient();
  }
  // dq, and D, from the state of all keys.
  void all_queries() {
    Base::for_each_chunk(span_.queries, [&](const TokenRange& t) {
      features_.queries(in_.q, t, q_);
      load_gradient(t);
      state_.gradient(gt_, totals_, t, df_);
      store_query_gradient(t);
      dstate_.add(q_, g_, totals_, t);
    });
  }
  // dk and dv, from D of all queries.
  void all_keys() {
    Base::for_each_chunk(span_.keys, [&](const TokenRange& t) {
      features_.keys(in_.k, t, Base::shift_, k_);
      load_values_both_ways(t);
      dstate_.gradient(vt_, decay_.out, t, df_);
      dstate_.read(k_, t, rows_, nullptr);
      store_tokens(shape_.dtype, p_.dv, t, shape_.head_dim_v, rows_, [](ptrdiff_t) { return C(1); });
      features_.gradient(k_, df_, t, true, sums_, p_.dk);
    });
    store_state_gradient();
  }
  void store_state_gradient() const {
    if (p_.dstate && part_.first()) {
      dstate_.store(static_cast<C*>(p_.dstate) + Base::state_index_, Base::shift_factor(-1));
    }
  }

  // What a part asks of the state before it, in d(part).
  HWY_NOINLINE void sum_gradient(const PartStates<C>& states) {
    begin_gradient(part_.last() ? p_.dfinal_state : nullptr);
    Base::for_each_chunk_backwards(span_.queries, [&](const TokenRange& t) {
      features_.queries(in_.q, t, q_);
      Base::load_decay(t);
      load_gradient(t);
      update_gradient(t);
    });
    const PartState<C> sum = states.d(index_, part_.index);
    sum.state.copy(dstate_);
    *sum.decay = *states.s(index_, part_.index).decay;
  }
  // D takes in q_, g_ and totals_ (which decay).
  HWY_NOINLINE void update_gradient(const TokenRange& t) {
    if (decay_.there) {
      dstate_.scale(decay_.all);
      for (ptrdiff_t i = 0; i < t.count; ++i) {
        scale_row(g_ + i * width_, decay_.in[i], width_);
        totals_[i] *= decay_.in[i];
      }
    }
    dstate_.add(q_, g_, totals_, t);
  }
  // The gradients of a part's decays also have what later parts ask.
  HWY_NOINLINE void add_to_decays(double later) const {
    C* const rows = static_cast<C*>(p_.dlog_decay);
    Base::for_each_chunk(span_.queries, [&](const TokenRange& t) {
      C* const to = rows + Base::number_at(t, shape_.seqlen_q);
      for (ptrdiff_t i = 0; i < t.count; ++i) {
        to[i * shape_.num_heads] = static_cast<C>(to[i * shape_.num_heads] + later);
      }
    });
  }

  // fn on the chunk; on each of its tokens, in the order of the pass, where a number is not finite.
  template <class Fn>
  void whole_or_single(const TokenRange& t, bool backwards, const Fn& fn) {
    if (Base::finite(t) && (t.count == 1 || all_finite<C>(shape_.dtype, p_.dout, t, shape_.head_dim_v))) return fn(t);
    for (ptrdiff_t n = 0; n < t.count; ++n) {
      const ptrdiff_t i = backwards ? t.count - 1 - n : n;
      fn({t.batch, t.head, t.begin + i, 1});
    }
  }

  // g and its transpose: the gradient of the numerators; totals_: that of the denominators.
  HWY_NOINLINE void load_gradient(const TokenRange& t) {
    load_tokens<C>(shape_.dtype, p_.dout, t, shape_.head_dim_v, g_);
    if (shape_.normalize) {
      const Tag<C> d;
      load_tokens<C>(shape_.dtype, p_.out, t, shape_.head_dim_v, rows_);
      const C* const denominator = static_cast<const C*>(p_.denominator) + Base::number_at(t, shape_.seqlen_q);
      zero_row(totals_, kTokens);
      for (ptrdiff_t i = 0; i < t.count; ++i) {
        C* const g = g_ + i * width_;
        const C total = denominator[i * shape_.num_heads], inverse = total == C(0) ? C(0) : C(1) / total;
        auto delta = hn::Zero(d);
        for_each_tile_vec<C>(width_, [&](ptrdiff_t c) {
          delta = hn::MulAdd(hn::LoadU(d, g + c), hn::LoadU(d, rows_ + i * width_ + c), delta);
        });
        totals_[i] = total == C(0) ? C(0) : -inverse * sum_lanes<C>(delta);
        scale_row(g, inverse, width_);
      }
    }
    transpose(g_, width_, gt_, kTokens, t.padded(), shape_.head_dim_v);
  }
  HWY_NOINLINE void load_values_both_ways(const TokenRange& t) {
    Base::load_values(t);
    transpose(v_, width_, vt_, kTokens, t.padded(), shape_.head_dim_v);
  }

  HWY_NOINLINE void store_query_gradient(const TokenRange& t) {
    features_.gradient(q_, df_, t, !shape_.normalize, sums_, p_.dq);
    if (!p_.dlog_decay) return;
    C* const to = static_cast<C*>(p_.dlog_decay) + Base::number_at(t, shape_.seqlen_q);
    for (ptrdiff_t i = 0; i < t.count; ++i) to[i * shape_.num_heads] = sums_[i];
  }

  static double inner_product(const LinearState<C>& a, const LinearState<C>& b) {
    double sum = 0;
    for (ptrdiff_t i = 0; i < a.features * a.width; ++i) sum += static_cast<double>(a.values[i]) * b.values[i];
    for (ptrdiff_t i = 0; i < a.features; ++i) sum += static_cast<double>(a.sums[i]) * b.sums[i];
    return sum;
  }

  HWY_NOINLINE void causal_queries(const TokenRange& t) {
    features_.keys(in_.k, t, 0, k_);
    features_.queries(in_.q, t, q_);
    Base::load_values(t);
    Base::load_decay(t);
    load_gradient(t);
    state_.gradient(gt_, totals_, t, df_);
    if (decay_.there) {
      const Tag<C> d;
      for (ptrdiff_t r = 0; r < features_.count(); ++r) {
        for_each_tile_vec<C>(t.padded(), [&](ptrdiff_t i) {
          C* const to = df_ + r * kTokens + i;
          hn::StoreU(hn::Mul(hn::LoadU(d, to), hn::LoadU(d, decay_.in + i)), d, to);
        });
      }
    }
    // dA^T [j][i], i >= j
    for (ptrdiff_t r = 0; r < t.count; r += kTile) {
      product<C>(dweights_ + r * kTokens + r, kTokens, {v_ + r * width_, width_, 1}, gt_ + r, kTokens,
                 min_of(kTile, t.count - r), t.padded() - r, shape_.head_dim_v, false);
    }
    Base::finish_upper(dweights_, t, shape_.normalize ? totals_ : nullptr);
    const ptrdiff_t half = min_of(kTokens / 2, t.count);
    product<C>(df_, kTokens, {k_, kTokens, 1}, dweights_, kTokens, features_.count(), t.padded(), half, true);
    if (t.count > half) {
      product<C>(df_ + half, kTokens, {k_ + half, kTokens, 1}, dweights_ + half * kTokens + half, kTokens,
                 features_.count(), t.padded() - half, t.count - half, true);
    }
    store_query_gradient(t);
    Base::update_state(t);
  }

  HWY_NOINLINE void causal_keys(const TokenRange& t) {
    features_.queries(in_.q, t, q_);
    features_.keys(in_.k, t, 0, k_);
    load_values_both_ways(t);
    Base::load_decay(t);
    load_gradient(t);
    dstate_.gradient(vt_, ones(), t, df_);
    dstate_.read(k_, t, rows_, nullptr);
    if (decay_.there) {
      const Tag<C> d;
      for (ptrdiff_t r = 0; r < features_.count(); ++r) {
        for_each_tile_vec<C>(t.padded(), [&](ptrdiff_t i) {
          C* const to = df_ + r * kTokens + i;
          hn::StoreU(hn::Mul(hn::LoadU(d, to), hn::LoadU(d, decay_.out + i)), d, to);
        });
      }
      for (ptrdiff_t j = 0; j < t.count; ++j) scale_row(rows_ + j * width_, decay_.out[j], width_);
    }
    // dA [i][j], j <= i
    for (ptrdiff_t r = 0; r < t.count; r += kTile) {
      const ptrdiff_t rows = min_of(kTile, t.count - r);
      product<C>(dweights_ + r * kTokens, kTokens, {g_ + r * width_, width_, 1}, vt_, kTokens, rows,
                 min_of(r + kTile, t.padded()), shape_.head_dim_v, false);
    }
    finish_lower(t);
    const ptrdiff_t half = min_of(kTokens / 2, t.padded()), first = min_of(half, t.count);
    product<C>(df_, kTokens, {q_, kTokens, 1}, dweights_, kTokens, features_.count(), half, first, true);
    if (t.count > first) {
      product<C>(df_, kTokens, {q_ + first, kTokens, 1}, dweights_ + first * kTokens, kTokens, features_.count(),
                 t.padded(), t.count - first, true);
    }
    Base::fill_weights(t);
    for (ptrdiff_t r = 0; r < t.count; r += kTile) {
      product<C>(rows_ + r * width_, width_, {weights_ + r * kTokens + r, kTokens, 1}, g_ + r * width_, width_,
                 min_of(kTile, t.count - r), width_, t.count - r, true);
    }
    store_tokens(shape_.dtype, p_.dv, t, shape_.head_dim_v, rows_, [](ptrdiff_t) { return C(1); });
    features_.gradient(k_, df_, t, true, sums_, p_.dk);
    if (p_.dlog_decay) {
      C* const to = static_cast<C*>(p_.dlog_decay) + Base::number_at(t, shape_.seqlen_q);
      for (ptrdiff_t i = t.count - 1; i >= 0; --i) {
        decay_gradient_ += static_cast<double>(to[i * shape_.num_heads]) - sums_[i];
        to[i * shape_.num_heads] = static_cast<C>(decay_gradient_);
      }
    }
    update_gradient(t);
  }

  // Of rows i that are computed up to their tile's end: += totals_[i], times decay; 0 behind column i.
  HWY_NOINLINE void finish_lower(const TokenRange& t) {
    const Tag<C> d;
    for (ptrdiff_t i = 0; i < t.count; ++i) {
      C* const row = dweights_ + i * kTokens;
      const auto addend = hn::Set(d, shape_.normalize ? totals_[i] : C(0));
      for (ptrdiff_t j = 0; j <= i; j += lanes<C>()) {
        auto x = hn::Add(hn::LoadU(d, row + j), addend);
        if (decay_.there) x = hn::Mul(x, hn::LoadU(d, decay_.transposed + i * kTokens + j));
        hn::StoreU(x, d, row + j);
      }
      zero_row(row + i + 1, t.padded() - i - 1);
    }
  }

  const C* ones() {
    for (ptrdiff_t i = 0; i < kTokens; ++i) sums_[i] = 1;
    return sums_;
  }

  const LinearAttentionBwdParams& p_;
  LinearState<C> dstate_;
  C *df_ = nullptr, *g_ = nullptr, *gt_ = nullptr, *vt_ = nullptr, *dweights_ = nullptr, *sums_ = nullptr;
  double decay_gradient_ = 0;
};

// Every sequence and head is a task, or every part of one.
template <class C, class Pass, class Params>
void run_heads(const Params& p, const Threads& threads) {
  const size_t bytes = Pass(p).lay_out(nullptr);
  const int64_t heads = p.shape.num_sequences * p.shape.num_heads, parts = parts_of(p.shape, threads);
  PartStates<C> states(p.shape, parts);
  const ThreadScratch scratch(bytes * threads.num_threads + states.bytes());
  states.place(scratch.data() + bytes * threads.num_threads);
  const auto for_each_part = [&](const auto& fn) {
    for_each_task(threads, heads * parts, [&](int64_t task, int worker) {
      Pass pass(p);
      pass.lay_out(scratch.data() + worker * bytes);
      pass.begin(task / parts, {task % parts, parts});
      fn(pass);
    });
  };
  if (parts == 1) return for_each_part([](Pass& pass) { pass.run(); });
  for (int phase = 0; phase < Pass::kPhases; ++phase) {
    for_each_part([&](Pass& pass) { pass.run_phase(phase, states); });
    for_each_task(threads, heads, [&](int64_t head, int) { Pass::join(phase, p, states, head); });
  }
}

}  // namespace

void linear_attention_forward(const LinearAttentionFwdParams& p, const Threads& threads) {
  p.shape.dtype == DType::kFloat64 ? run_heads<double, ForwardHead<double>>(p, threads)
                                   : run_heads<float, ForwardHead<float>>(p, threads);
}

void linear_attention_backward(const LinearAttentionBwdParams& p, const Threads& threads) {
  p.shape.dtype == DType::kFloat64 ? run_heads<double, BackwardHead<double>>(p, threads)
                                   : run_heads<float, BackwardHead<float>>(p, threads);
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
