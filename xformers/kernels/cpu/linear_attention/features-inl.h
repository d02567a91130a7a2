// Features of a chunk of tokens, feature-major [m, kTokens], and the gradient through them. Tokens behind the last are
// zeros.
//
// A feature is exp(p + o): p the projection x omega, or its negative, o one number per token.
#pragma once

#include "xformers/kernels/cpu/linear_attention/tokens-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

template <class C>
class Features {
  static constexpr C kInfinite = static_cast<C>(__builtin_inf());

 public:
  // x_scale: head_dim^(-1/4);  log_norm: log(m) / 2.
  Features(const LinearAttentionShape& shape, const void* omega, double x_scale, double log_norm)
      : shape_(shape),
        omega_(static_cast<const C*>(omega)),
        x_scale_(static_cast<C>(x_scale)),
        log_norm_(static_cast<C>(log_norm)) {}

  HWY_INLINE void lay_out(Arena& arena) {
    const ptrdiff_t dim = round_up(shape_.head_dim, kTile);
    rows_ = arena.take<C>(kTokens * dim);
    x_ = arena.take<C>(made() ? dim * kTokens : 0);
    dx_ = arena.take<C>(made() ? dim * kTokens : 0);
    squares_ = arena.take<C>(kTokens);
    offsets_ = arena.take<C>(kTokens);
  }

  HWY_INLINE bool made() const { return shape_.map != FeatureMap::kGiven; }
  HWY_INLINE ptrdiff_t count() const { return shape_.num_features; }
  HWY_INLINE static size_t size(const LinearAttentionShape& shape) {
    return round_up(shape.num_features, kTile) * kTokens;
  }

  // The features of these queries.
  HWY_NOINLINE void queries(const HeadsTensor& q, const TokenRange& tokens, C* f) {
    project(q, tokens, f);
    if (!made()) return;
    if (!shape_.normalize) return power_of_squares(f, tokens, 0);
    // Whatever scales a query cancels: its largest feature is 1.
    const Tag<C> d;
    for_each_tile_vec<C>(tokens.padded(), [&](ptrdiff_t i) {
      auto top = hn::Set(d, -kInfinite);
      for (ptrdiff_t r = 0; r < columns(); ++r) top = hn::Max(top, largest_of(hn::LoadU(d, f + r * kTokens + i)));
      hn::StoreU(hn::Neg(top), d, offsets_ + i);
    });
    power(f, tokens);
  }

  // The features of these keys, all of them divided by exp(shift).
  HWY_NOINLINE void keys(const HeadsTensor& k, const TokenRange& tokens, C shift, C* f) {
    project(k, tokens, f);
    if (made()) power_of_squares(f, tokens, shift);
  }

  // The same where shift is the largest exponent so far: it grows to that of these keys. Returns what features made
  // before are to be scaled with.
  HWY_NOINLINE C keys_and_shift(const HeadsTensor& k, const TokenRange& tokens, C* shift, C* f) {
    project(k, tokens, f);
    if (!made()) return 1;
    const Tag<C> d;
    auto top = hn::Set(d, *shift);
    for_each_tile_vec<C>(tokens.padded(), [&](ptrdiff_t i) {
      auto largest = hn::Set(d, -kInfinite);
      for (ptrdiff_t r = 0; r < columns(); ++r)
        largest = hn::Max(largest, largest_of(hn::LoadU(d, f + r * kTokens + i)));
      const auto exponent =
          hn::Sub(hn::NegMulAdd(hn::Set(d, C(0.5)), hn::LoadU(d, squares_ + i), largest), hn::Set(d, log_norm_));
      top = hn::Max(exponent, top);
    });
    const C before = *shift;
    *shift = hn::GetLane(hn::MaxOfLanes(d, top));
    power_of_squares(f, tokens, *shift);
    return before == *shift ? C(1) : hn::GetLane(exp_anywhere<C>(hn::Set(d, before - *shift)));
  }

  // From df, the gradient of the features f, which is overwritten: writes that of the tokens that were loaded last.
  // sums [kTokens] = sum over the features of f df. with_squares: the length of x counts, too.
  HWY_NOINLINE void gradient(const C* f, C* df, const TokenRange& tokens, bool with_squares, C* sums,
                             const HeadsTensor& dx) {
    const Tag<C> d;
    const ptrdiff_t padded = tokens.padded(), w = columns();
    zero_row(sums, kTokens);
    for (ptrdiff_t r = 0; r < count(); ++r) {
      for_each_tile_vec<C>(padded, [&](ptrdiff_t i) {
        const auto weighted = hn::Mul(hn::LoadU(d, f + r * kTokens + i), hn::LoadU(d, df + r * kTokens + i));
        hn::StoreU(hn::Add(hn::LoadU(d, sums + i), weighted), d, sums + i);
        if (made()) hn::StoreU(weighted, d, df + r * kTokens + i);
      });
    }
    const C* grad = df;
    if (made()) {
      for (ptrdiff_t r = 0; paired() && r < w; ++r) {
        for_each_tile_vec<C>(padded, [&](ptrdiff_t i) {
          C* const to = df + r * kTokens + i;
          hn::StoreU(hn::Sub(hn::LoadU(d, to), hn::LoadU(d, to + w * kTokens)), d, to);
        });
      }
      product<C>(dx_, kTokens, {omega_, w, 1}, df, kTokens, shape_.head_dim, padded, w, false);
      for (ptrdiff_t k = 0; with_squares && k < shape_.head_dim; ++k) {
        for_each_tile_vec<C>(padded, [&](ptrdiff_t i) {
          C* const to = dx_ + k * kTokens + i;
          hn::StoreU(hn::NegMulAdd(hn::LoadU(d, x_ + k * kTokens + i), hn::LoadU(d, sums + i), hn::LoadU(d, to)), d,
                     to);
        });
      }
      grad = dx_;
    }
    transpose(grad, kTokens, rows_, round_up(shape_.head_dim, kTile), shape_.head_dim, padded);
    store_tokens(shape_.dtype, dx, tokens, shape_.head_dim, rows_, [&](ptrdiff_t) { return made() ? x_scale_ : C(1); });
  }

 private:
  HWY_INLINE bool paired() const { return shape_.map == FeatureMap::kExpPaired; }
  HWY_INLINE ptrdiff_t columns() const { return shape_.omega_columns(); }
  HWY_INLINE Vec<C> largest_of(Vec<C> p) const { return paired() ? hn::Abs(p) : p; }

  // f = given features, or the projections in its first rows; the squared lengths of x.
  HWY_INLINE void project(const HeadsTensor& from, const TokenRange& tokens, C* f) {
    const Tag<C> d;
    const ptrdiff_t dim = shape_.head_dim, padded = tokens.padded();
    load_tokens<C>(shape_.dtype, from, tokens, dim, rows_, made() ? x_scale_ : C(1));
    transpose(rows_, round_up(dim, kTile), made() ? x_ : f, kTokens, padded, dim);
    if (!made()) return;
    product<C>(f, kTokens, {omega_, 1, columns()}, x_, kTokens, columns(), padded, dim, false);
    for_each_tile_vec<C>(padded, [&](ptrdiff_t i) {
      auto sum = hn::Zero(d);
      for (ptrdiff_t k = 0; k < dim; ++k) {
        const auto x = hn::LoadU(d, x_ + k * kTokens + i);
        sum = hn::MulAdd(x, x, sum);
      }
      hn::StoreU(sum, d, squares_ + i);
    });
    for (ptrdiff_t i = tokens.count; i < padded; ++i) squares_[i] = kInfinite;  // their features are 0
  }

  HWY_INLINE void power_of_squares(C* f, const TokenRange& tokens, C shift) {
    const Tag<C> d;
    for_each_tile_vec<C>(tokens.padded(), [&](ptrdiff_t i) {
      const auto constant = hn::Set(d, -log_norm_ - shift);
      hn::StoreU(hn::NegMulAdd(hn::Set(d, C(0.5)), hn::LoadU(d, squares_ + i), constant), d, offsets_ + i);
    });
    power(f, tokens);
  }

  HWY_INLINE void power(C* f, const TokenRange& tokens) {
    const Tag<C> d;
    const ptrdiff_t padded = tokens.padded(), w = columns();
    for (ptrdiff_t i = tokens.count; i < padded; ++i) offsets_[i] = -kInfinite;
    for (ptrdiff_t r = 0; r < w; ++r) {
      for_each_tile_vec<C>(padded, [&](ptrdiff_t i) {
        C* const to = f + r * kTokens + i;
        const auto p = hn::LoadU(d, to), o = hn::LoadU(d, offsets_ + i);
        hn::StoreU(exp_anywhere<C>(hn::Add(o, p)), d, to);
        if (paired()) hn::StoreU(exp_anywhere<C>(hn::Sub(o, p)), d, to + w * kTokens);
      });
    }
  }

  const LinearAttentionShape& shape_;
  const C* omega_;
  C x_scale_, log_norm_;
  C *rows_ = nullptr, *x_ = nullptr, *dx_ = nullptr;  // [kTokens, dim]; [dim, kTokens] both
  C *squares_ = nullptr, *offsets_ = nullptr;         // [kTokens]
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
