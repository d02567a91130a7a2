// Linear attention of one sequence and head per task, in chunks of 64 tokens, features feature-major. Compiled once per
// instruction set.
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
#include "xformers/kernels/cpu/linear_attention/state-inl.h"

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

// What both passes have of one sequence and head.
template <class C>
class Head {
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

  void begin(int64_t sequence, int64_t head) {
    span_ = span_of(shape_, sequence);
    head_ = head;
    state_index_ = (sequence * shape_.num_heads + head) * shape_.num_features * shape_.state_width();
    shift_ = shifts() && !in_.state ? -static_cast<C>(__builtin_inf()) : C(0);
    state_.load(in_.state ? static_cast<const C*>(in_.state) + state_index_ : nullptr);
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
    for (int64_t first = 0; first < count; first += kTokens) fn(tokens(first, min_of(kTokens, count - first)));
  }
  template <class Fn>
  void for_each_chunk_backwards(int64_t count, const Fn& fn) const {
    for (int64_t first = round_up(count, kTokens) - kTokens; first >= 0; first -= kTokens) {
      fn(tokens(first, min_of(kTokens, count - first)));
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

  // The state of all keys.
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
  int64_t head_ = 0, state_index_ = 0;
  C shift_ = 0;
};

template <class C>
class ForwardHead : Head<C> {
  using Base = Head<C>;
  using Base::decay_, Base::features_, Base::in_, Base::k_, Base::q_, Base::rows_, Base::shape_, Base::span_,
      Base::state_, Base::totals_, Base::v_, Base::weights_, Base::width_;

 public:
  explicit ForwardHead(const LinearAttentionFwdParams& params) : Base(params.shape, params.in), p_(params) {}
  size_t lay_out(void* memory) {
    Arena arena(memory);
    Base::lay_out_head(arena, false);
    return arena.bytes();
  }

  void run(int64_t sequence, int64_t head) {
    Base::begin(sequence, head);
    if (shape_.causal) {
      Base::for_each_chunk(span_.queries, [&](const TokenRange& t) {
        if (Base::finite(t)) return causal_chunk(t);
        for (ptrdiff_t i = 0; i < t.count; ++i) causal_chunk({t.batch, t.head, t.begin + i, 1});
      });
    } else {
      Base::sum_keys();
      Base::for_each_chunk(span_.queries, [&](const TokenRange& t) {
        features_.queries(in_.q, t, q_);
        state_.read(q_, t, rows_, totals_);
        finish(t);
      });
    }
    if (p_.final_state) state_.store(static_cast<C*>(p_.final_state) + Base::state_index_, Base::shift_factor(1));
  }

 private:
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
  using Base::decay_, Base::features_, Base::in_, Base::k_, Base::q_, Base::rows_, Base::shape_, Base::span_,
      Base::state_, Base::totals_, Base::v_, Base::weights_, Base::width_;

 public:
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

  void run(int64_t sequence, int64_t head) {
    Base::begin(sequence, head);
    if (shape_.causal) {
      Base::for_each_chunk(span_.queries, [&](const TokenRange& t) {
        whole_or_single(t, false, [&](const TokenRange& part) { causal_queries(part); });
      });
    } else {
      Base::sum_keys();
    }
    // D starts as what the final state's gradient asks, in the units of S.
    const C* const dfinal = p_.dfinal_state ? static_cast<const C*>(p_.dfinal_state) + Base::state_index_ : nullptr;
    dstate_.load(dfinal, Base::shift_factor(1));
    decay_gradient_ = 0;
    if (shape_.causal) {
      if (p_.dlog_decay && dfinal) decay_gradient_ = inner_product(state_, dstate_);
      Base::for_each_chunk_backwards(span_.keys, [&](const TokenRange& t) {
        whole_or_single(t, true, [&](const TokenRange& part) { causal_keys(part); });
      });
    } else {
      Base::for_each_chunk(span_.queries, [&](const TokenRange& t) {
        features_.queries(in_.q, t, q_);
        load_gradient(t);
        state_.gradient(gt_, totals_, t, df_);
        store_query_gradient(t);
        dstate_.add(q_, g_, totals_, t);
      });
      Base::for_each_chunk(span_.keys, [&](const TokenRange& t) {
        features_.keys(in_.k, t, Base::shift_, k_);
        load_values_both_ways(t);
        dstate_.gradient(vt_, decay_.out, t, df_);
        dstate_.read(k_, t, rows_, nullptr);
        store_tokens(shape_.dtype, p_.dv, t, shape_.head_dim_v, rows_, [](ptrdiff_t) { return C(1); });
        features_.gradient(k_, df_, t, true, sums_, p_.dk);
      });
    }
    if (p_.dstate) dstate_.store(static_cast<C*>(p_.dstate) + Base::state_index_, Base::shift_factor(-1));
  }

 private:
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
    if (decay_.there) {
      dstate_.scale(decay_.all);
      for (ptrdiff_t i = 0; i < t.count; ++i) {
        scale_row(g_ + i * width_, decay_.in[i], width_);
        totals_[i] *= decay_.in[i];
      }
    }
    dstate_.add(q_, g_, totals_, t);
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

// Every sequence and head is one task.
template <class Pass, class Params>
void run_heads(const Params& p, const Threads& threads) {
  const size_t bytes = Pass(p).lay_out(nullptr);
  const int64_t heads = p.shape.num_heads;
  const ThreadScratch scratch(bytes * threads.num_threads);
  for_each_task(threads, p.shape.num_sequences * heads, [&](int64_t task, int worker) {
    Pass pass(p);
    pass.lay_out(scratch.data() + worker * bytes);
    pass.run(task / heads, task % heads);
  });
}

}  // namespace

void linear_attention_forward(const LinearAttentionFwdParams& p, const Threads& threads) {
  p.shape.dtype == DType::kFloat64 ? run_heads<ForwardHead<double>>(p, threads)
                                   : run_heads<ForwardHead<float>>(p, threads);
}

void linear_attention_backward(const LinearAttentionBwdParams& p, const Threads& threads) {
  p.shape.dtype == DType::kFloat64 ? run_heads<BackwardHead<double>>(p, threads)
                                   : run_heads<BackwardHead<float>>(p, threads);
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
