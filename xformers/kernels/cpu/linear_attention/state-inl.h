// What lies between the tokens of a chunk and others: a state [m, V] with the sums [m] beside it, and the decay of its
// tokens.
#pragma once

#include "xformers/kernels/cpu/linear_attention/tokens-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

template <class C>
HWY_INLINE void scale_row(C* row, C factor, ptrdiff_t cols) {
  const Tag<C> d;
  for_each_tile_vec<C>(
      cols, [&](ptrdiff_t i) { hn::StoreU(hn::Mul(hn::LoadU(d, row + i), hn::Set(d, factor)), d, row + i); });
}

// to += factor * from
template <class C>
HWY_INLINE void add_row(C* to, const C* from, C factor, ptrdiff_t cols) {
  const Tag<C> d;
  for_each_tile_vec<C>(cols, [&](ptrdiff_t i) {
    hn::StoreU(hn::MulAdd(hn::LoadU(d, from + i), hn::Set(d, factor), hn::LoadU(d, to + i)), d, to + i);
  });
}

// A sum of features times rows, and of features times weights; or its gradient.
template <class C>
struct LinearState {
  C *values = nullptr, *sums = nullptr;  // [m, width], [m]
  ptrdiff_t features = 0, dim_v = 0, width = 0;
  bool has_sums = false;

  HWY_INLINE void lay_out(Arena& arena, const LinearAttentionShape& shape) {
    features = shape.num_features;
    dim_v = shape.head_dim_v;
    width = round_up(dim_v, kTile);
    has_sums = shape.normalize;
    values = arena.take<C>(features * width);
    sums = arena.take<C>(features);
  }

  // From [m, V (+ 1)], times factor; null: zeros.
  HWY_NOINLINE void load(const C* from, C factor = 1) {
    zero_row(values, features * width);
    zero_row(sums, features);
    if (!from) return;
    const ptrdiff_t stride = dim_v + (has_sums ? 1 : 0);
    for (ptrdiff_t f = 0; f < features; ++f) {
      const C* const row = from + f * stride;
      for (ptrdiff_t i = 0; i < dim_v; ++i) values[f * width + i] = factor * row[i];
      if (has_sums) sums[f] = factor * row[dim_v];
    }
  }
  HWY_NOINLINE void store(C* to, C factor = 1) const {
    const ptrdiff_t stride = dim_v + (has_sums ? 1 : 0);
    for (ptrdiff_t f = 0; f < features; ++f) {
      C* const row = to + f * stride;
      for (ptrdiff_t i = 0; i < dim_v; ++i) row[i] = factor * values[f * width + i];
      if (has_sums) row[dim_v] = factor * sums[f];
    }
  }
  HWY_NOINLINE void scale(C factor) {
    if (factor == C(1)) return;
    for (ptrdiff_t f = 0; f < features; ++f) {
      scale_row(values + f * width, factor, width);
      sums[f] *= factor;
    }
  }

  HWY_NOINLINE void copy(const LinearState& from) const {
    for (ptrdiff_t i = 0; i < features * width; ++i) values[i] = from.values[i];
    for (ptrdiff_t i = 0; i < features; ++i) sums[i] = from.sums[i];
  }
  HWY_NOINLINE void add_scaled(const LinearState& other, C factor) const {
    add_row(values, other.values, factor, features * width);
    for (ptrdiff_t i = 0; i < features; ++i) sums[i] += factor * other.sums[i];
  }

  // values += f rows, sums += f weights;  f [m, kTokens], rows [tokens, width], weights [kTokens].
  HWY_NOINLINE void add(const C* f, const C* rows, const C* weights, const TokenRange& tokens) {
    product<C>(values, width, {f, kTokens, 1}, rows, width, features, width, tokens.count, true);
    if (!has_sums) return;
    const Tag<C> d;
    for (ptrdiff_t r = 0; r < features; ++r) {
      auto sum = hn::Zero(d);
      for_each_tile_vec<C>(tokens.padded(), [&](ptrdiff_t i) {
        sum = hn::MulAdd(hn::LoadU(d, f + r * kTokens + i), hn::LoadU(d, weights + i), sum);
      });
      sums[r] += sum_lanes<C>(sum);
    }
  }

  // rows [tokens, width] = f^T values, totals [kTokens] (null: not wanted) = f^T sums.
  HWY_NOINLINE void read(const C* f, const TokenRange& tokens, C* rows, C* totals) const {
    product<C>(rows, width, {f, 1, kTokens}, values, width, tokens.count, width, features, false);
    if (!totals) return;
    zero_row(totals, kTokens);
    for (ptrdiff_t r = 0; has_sums && r < features; ++r) add_row(totals, f + r * kTokens, sums[r], tokens.padded());
  }

  // df [m, kTokens] = values g^T + sums weights^T, the gradient of features that read it, or were added with these rows
  // and weights;  gt [V, kTokens].
  HWY_NOINLINE void gradient(const C* gt, const C* weights, const TokenRange& tokens, C* df) const {
    product<C>(df, kTokens, {values, width, 1}, gt, kTokens, features, tokens.padded(), dim_v, false);
    for (ptrdiff_t r = 0; has_sums && r < features; ++r) add_row(df + r * kTokens, weights, sums[r], tokens.padded());
  }
};

// exp of sums of log-decays in a chunk of n tokens. Sums are never differences of longer ones: they stay exact, and
// -inf, a fresh start, is a number like any other.
template <class C>
struct DecayWeights {
  C *pairs = nullptr, *transposed = nullptr;  // [j][i], i >= j: from after j up to i; [i][j]
  C *in = nullptr, *out = nullptr;            // [i]: from the chunk's start up to i; [j]: from after j to its end
  C all = 1;                                  // the whole chunk
  bool there = false;

  HWY_INLINE void lay_out(Arena& arena, bool decays, bool backward) {
    there = decays;
    in = arena.take<C>(kTokens);
    out = arena.take<C>(kTokens);
    if (decays) pairs = arena.take<C>(kTokens * kTokens);
    if (decays && backward) transposed = arena.take<C>(kTokens * kTokens);
    for (ptrdiff_t i = 0; in && i < kTokens; ++i) in[i] = out[i] = 1;
  }

  // g: that of the first token, `stride` apart.
  HWY_NOINLINE void fill(const C* g, ptrdiff_t stride, const TokenRange& tokens) {
    if (!there) return;
    const Tag<C> d;
    const ptrdiff_t n = tokens.count, padded = tokens.padded();
    alignas(64) C sums[kTokens];
    const auto power_row = [&](C* to, ptrdiff_t begin) {
      for (ptrdiff_t i = begin; i < padded; i += lanes<C>())
        hn::StoreU(exp_anywhere<C>(hn::LoadU(d, sums + i)), d, to + i);
    };
    zero_row(sums, kTokens);
    C total = 0;
    for (ptrdiff_t i = 0; i < n; ++i) sums[i] = total += g[i * stride];
    power_row(in, 0);
    all = in[n - 1];
    zero_row(sums, kTokens);
    total = 0;
    for (ptrdiff_t j = n - 1; j >= 0; total += g[j * stride], --j) sums[j] = total;
    power_row(out, 0);
    zero_row(sums, kTokens);
    for (ptrdiff_t j = n - 1; j >= 0; --j) {
      if (j + 1 < n) {
        const auto next = hn::Set(d, g[(j + 1) * stride]);
        for (ptrdiff_t i = (j + 1) / kTile * kTile; i < padded; i += lanes<C>())
          hn::StoreU(hn::Add(hn::LoadU(d, sums + i), next), d, sums + i);
      }
      for (ptrdiff_t i = j / kTile * kTile; i <= j; ++i) sums[i] = 0;
      power_row(pairs + j * kTokens, j / kTile * kTile);
    }
    if (transposed) transpose(pairs, kTokens, transposed, kTokens, padded, padded);
  }
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
