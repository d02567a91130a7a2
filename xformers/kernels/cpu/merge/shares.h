// The one rule by which attention over parts of the keys is put together, whoever made the parts. Not for units of one
// instruction set: std templates.
//
//   M = max_i row_max_i,  share_i = row_sum_i exp(factor (row_max_i - M)) / sum,  L = factor M + log(sum of numerators)
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace xformers::cpu {

// What a part knows of a row: row_sum is the sum of exp(factor (score - row_max)) over its keys, 0 where it saw none. A
// log-sum-exp is row_max with the sum 1.
template <class C>
struct PartStatistics {
  C row_max, row_sum;

  static PartStatistics from_lse(C lse) { return {lse, lse == -std::numeric_limits<C>::infinity() ? C(0) : C(1)}; }
  bool saw_keys() const { return row_sum != C(0); }
};

template <class C>
struct MergedLse {
  C lse, low;  // as in params/attention.h
};

// shares[i] of each part; statistics(i) gives what it knows. A part that saw no key has share 0, and its out must not
// be read; where none saw any, lse is -inf. NaN in a part that did makes lse and the shares of all that did NaN.
template <class C, class Statistics>
MergedLse<C> merge_shares(int64_t num_parts, C factor, const Statistics& statistics, C* shares) {
  constexpr C kMinusInfinity = -std::numeric_limits<C>::infinity();
  C highest = kMinusInfinity, total = 0;  // highest ignores NaN, total keeps it
  for (int64_t i = 0; i < num_parts; ++i) {
    const PartStatistics<C> part = statistics(i);
    if (part.saw_keys()) highest = std::max(highest, part.row_max);
  }
  for (int64_t i = 0; i < num_parts; ++i) {
    const PartStatistics<C> part = statistics(i);
    shares[i] = part.saw_keys() ? part.row_sum * std::exp(factor * (part.row_max - highest)) : C(0);
    total += shares[i];
  }
  if (total == C(0)) return {kMinusInfinity, C(0)};
  for (int64_t i = 0; i < num_parts; ++i) {
    if (statistics(i).saw_keys()) shares[i] /= total;
  }
  const C log_total = std::log(total), lse = std::fma(highest, factor, log_total);
  return {lse, std::isfinite(lse) ? std::fma(highest, factor, -lse) + log_total : C(0)};
}

// The same with a sink, which has weight and no value. shares: of num_parts, as merge_shares left them.
template <class C>
MergedLse<C> add_sink(const MergedLse<C>& merged, C sink, int64_t num_parts, C* shares) {
  if (sink == -std::numeric_limits<C>::infinity()) return merged;
  const bool higher = sink > merged.lse;
  const C below = higher ? (merged.lse - sink) + merged.low : (sink - merged.lse) - merged.low;
  const C smaller = std::exp(below), more = std::log1p(smaller), kept = (higher ? smaller : C(1)) / (C(1) + smaller);
  for (int64_t i = 0; i < num_parts; ++i) shares[i] *= kept;
  const C top = higher ? sink : merged.lse, rest = higher ? more : merged.low + more, lse = top + rest;
  return {lse, std::isfinite(lse) ? (top - lse) + rest : C(0)};
}

}  // namespace xformers::cpu
