// What may happen to scores between the product and the mask (params/attention.h): cap, ALiBi, bias, in this order. The
// first one that there is takes softmax_scale along.
#pragma once

#include "xformers/kernels/cpu/attention/columns-inl.h"
#include "xformers/kernels/cpu/base/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// scores = softcap * tanh(scores * softmax_scale / softcap). derivative, if not null: 1 - tanh^2 of each.
template <class C>
HWY_NOINLINE void cap_scores(C* scores, ptrdiff_t count, C softmax_scale, C softcap, C* derivative) {
  const Tag<C> d;
  const auto inner = hn::Set(d, softmax_scale / softcap), outer = hn::Set(d, softcap), one = hn::Set(d, C(1));
  for (ptrdiff_t i = 0; i < count; i += lanes<C>()) {
    const auto capped = tanh_vec(hn::Mul(hn::LoadU(d, scores + i), inner));
    hn::StoreU(hn::Mul(capped, outer), d, scores + i);
    if (derivative) hn::StoreU(hn::NegMulAdd(capped, capped, one), d, derivative + i);
  }
}

// |d(i) - j| of a vector of columns, for the key whose column on the diagonal is at `place`, counted from the origin.
template <class C>
HWY_INLINE Vec<C> alibi_distance(const Columns<C>& columns, ptrdiff_t c, Vec<C> place) {
  return hn::Abs(hn::Sub(hn::Load(Tag<C>(), columns.query_position + c), place));
}

// scores = scores * softmax_scale - slope * distance, for keys [key, key + rows). shift: of alibi_shift().
template <class C>
HWY_INLINE void add_alibi(C* scores, ptrdiff_t rows, C softmax_scale, const HeadNumbers& slopes, int64_t sequence,
                          int64_t group, const Columns<C>& columns, int64_t key, int64_t shift) {
  const Tag<C> d;
  const auto scale = hn::Set(d, softmax_scale);
  alignas(64) C slope[kBlockColumns];
  for (ptrdiff_t c = 0; c < columns.padded; ++c) slope[c] = number_of<C>(slopes, sequence, group, columns.head[c]);
  const int64_t first = key - shift - columns.origin;
  for (ptrdiff_t n = 0; n < rows; ++n) {
    const auto place = hn::Set(d, static_cast<C>(first + n));
    for (ptrdiff_t c = 0; c < columns.padded; c += lanes<C>()) {
      C* const at = scores + n * columns.padded + c;
      const auto down = hn::Mul(hn::Load(d, slope + c), alibi_distance(columns, c, place));
      hn::StoreU(hn::MulSub(hn::LoadU(d, at), scale, down), d, at);
    }
  }
}

// scores = scores * softmax_scale + bias, for keys [key, key + rows); -inf hides whatever score it meets. staging:
// 2 * 64 * 128 numbers.
template <class T, class C>
HWY_INLINE void add_bias(C* scores, ptrdiff_t rows, C softmax_scale, const ScoreBias& bias, int64_t sequence,
                         int64_t group, const Columns<C>& columns, int64_t key, C* staging) {
  C* const transposed = staging + kBlockColumns * kBlockKeys;
  const ptrdiff_t padded_rows = round_up(rows, 16);
  for (ptrdiff_t c = 0; c < columns.count; ++c) {
    const T* from = bias_row<const T>(bias, sequence, columns.origin + columns.query[c], group, columns.head[c]) +
                    key * bias.k_stride;
    C* to = staging + c * padded_rows;
    if (bias.k_stride == 1) {
      convert_row(from, to, rows);
    } else {
      for (ptrdiff_t n = 0; n < rows; ++n) to[n] = static_cast<C>(to_compute(from[n * bias.k_stride]));
    }
  }
  zero_row(staging + columns.count * padded_rows,
           (columns.padded - columns.count) * padded_rows);  // stale NaN would spread
  transpose(staging, padded_rows, transposed, columns.padded, columns.padded, rows);
  const Tag<C> d;
  const auto scale = hn::Set(d, softmax_scale), hidden = hn::Set(d, -kInfinity<C>);
  for (ptrdiff_t i = 0; i < rows * columns.padded; i += lanes<C>()) {
    const auto added = hn::LoadU(d, transposed + i), sum = hn::MulAdd(hn::LoadU(d, scores + i), scale, added);
    hn::StoreU(hn::IfThenElse(hn::Eq(added, hidden), hidden, sum), d, scores + i);
  }
}

template <class C>
HWY_INLINE void scale_scores(C* scores, ptrdiff_t count, C softmax_scale) {
  const Tag<C> d;
  const auto scale = hn::Set(d, softmax_scale);
  for (ptrdiff_t i = 0; i < count; i += lanes<C>()) hn::StoreU(hn::Mul(hn::LoadU(d, scores + i), scale), d, scores + i);
}

// All of it, on a block of keys [key, key + rows). cap_derivative, staging: 128 * 64 and 2 * 128 * 64 numbers.
template <class T, class C>
HWY_NOINLINE void modify_scores(C* scores, ptrdiff_t rows, const AttentionProblem& problem, const Sequence& sequence,
                                int64_t group, const Columns<C>& columns, int64_t key, C* staging, C* cap_derivative) {
  const ScoreModifiers& mods = problem.mods;
  C scale = static_cast<C>(problem.softmax_scale);
  if (mods.softcap > 0) {
    cap_scores(scores, rows * columns.padded, scale, static_cast<C>(mods.softcap), cap_derivative);
    scale = 1;
  }
  if (mods.alibi_slopes.data) {
    add_alibi(scores, rows, scale, mods.alibi_slopes, sequence.index, group, columns, key,
              alibi_shift(problem.band, sequence));
    scale = 1;
  }
  if (mods.bias.data) add_bias<T>(scores, rows, scale, mods.bias, sequence.index, group, columns, key, staging);
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
