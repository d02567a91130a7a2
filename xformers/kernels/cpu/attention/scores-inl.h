// What happens to a block of scores (columns-inl.h) between the two products: modifiers, mask, dropout.
#pragma once

#include "xformers/kernels/cpu/attention/score_mods-inl.h"
#include "xformers/kernels/cpu/base/philox-inl.h"
#include "xformers/kernels/cpu/base/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// softmax_scale is left to the exponential, where it costs nothing, unless something comes between, it is not positive,
// which would spoil maxima and the -inf of masked scores, or no fused multiply-add keeps the product exact.
HWY_INLINE bool needs_scaling([[maybe_unused]] const AttentionProblem& problem) {
#if HWY_NATIVE_FMA
  return problem.mods.change_scores() || !(problem.softmax_scale > 0);
#else
  return true;
#endif
}

// What the scores of the kernels are still to be multiplied by: positive.
template <class C>
HWY_INLINE C score_factor(const AttentionProblem& problem) {
  return needs_scaling(problem) ? C(1) : static_cast<C>(problem.softmax_scale);
}

// Invisible scores become -inf. (Scores are still to be multiplied by score_factor.)
template <class C>
HWY_INLINE void mask_scores(C* scores, ptrdiff_t rows, const Band& band, const Columns<C>& columns, int64_t key) {
  const Tag<C> d;
  const auto masked = hn::Set(d, -kInfinity<C>);
  for (ptrdiff_t n = 0; n < rows; ++n) {
    const int64_t first = clamp_to(band.first_query(key + n) - columns.origin, -1, 1 << 20);
    const int64_t last = clamp_to(band.last_query(key + n) - columns.origin, -1, 1 << 20);
    const auto low = hn::Set(d, static_cast<C>(first)), high = hn::Set(d, static_cast<C>(last));
    for (ptrdiff_t c = 0; c < columns.padded; c += lanes<C>()) {
      const auto position = hn::Load(d, columns.query_position + c);
      const auto visible = hn::And(hn::Ge(position, low), hn::Le(position, high));
      C* const at = scores + n * columns.padded + c;
      hn::StoreU(hn::IfThenElse(visible, hn::LoadU(d, at), masked), d, at);
    }
  }
}

// Modifiers and mask: -inf where a column does not see a key. False: all see all of them. cap_derivative: null, or for
// backward.
template <class T, class C>
HWY_INLINE bool finish_scores(C* scores, ptrdiff_t rows, const AttentionProblem& problem, const Band& band,
                              const Sequence& sequence, int64_t group, const Columns<C>& columns, int64_t key,
                              C* staging, C* cap_derivative = nullptr) {
  if (problem.mods.change_scores()) {
    modify_scores<T>(scores, rows, problem, sequence, group, columns, key, staging, cap_derivative);
  } else if (needs_scaling(problem)) {
    scale_scores(scores, rows * columns.padded, static_cast<C>(problem.softmax_scale));
  }
  const bool full = band.is_full(columns.queries, {key, key + rows});
  if (!full) mask_scores(scores, rows, band, columns, key);
  return !full || problem.mods.bias.data;
}

// The logarithm of rows' sums in two numbers, lse + low (params/attention.h).
template <class C>
struct LogSum {
  Vec<C> lse, low;
};

// row_sum: of exp(factor * (score - row_max)). A row is empty, with lse -inf, where it is 0; NaN stays NaN.
template <class C>
HWY_INLINE LogSum<C> log_sum(Vec<C> row_max, C factor, Vec<C> row_sum) {
  const Tag<C> d;
  const auto scale = hn::Set(d, factor), zero = hn::Zero(d);
  const auto positive = hn::Gt(row_sum, zero);
  const auto log = hn::Log(d, hn::IfThenElse(positive, row_sum, hn::Set(d, C(1))));
  const auto other = hn::IfThenElse(hn::Eq(row_sum, zero), hn::Set(d, -kInfinity<C>), row_sum);
  const auto lse = hn::IfThenElse(positive, hn::MulAdd(row_max, scale, log), other);
  const auto low = hn::Add(hn::MulSub(row_max, scale, lse), log);
  return {lse, hn::IfThenElseZero(hn::IsFinite(lse), low)};
}

// What a sink, which has weight and no value, makes of rows' sums; out is multiplied by `kept`. The rule of
// merge/shares.h.
template <class C>
struct SunkRows {
  LogSum<C> sum;
  Vec<C> kept;
};

template <class C>
HWY_INLINE SunkRows<C> add_sink(const LogSum<C>& sum, Vec<C> sink) {
  const Tag<C> d;
  const auto one = hn::Set(d, C(1));
  const auto none = hn::Eq(sink, hn::Set(d, -kInfinity<C>));
  const auto higher = hn::Gt(sink, sum.lse);
  const auto below =
      hn::IfThenElse(higher, hn::Add(hn::Sub(sum.lse, sink), sum.low), hn::Sub(hn::Sub(sink, sum.lse), sum.low));
  const auto smaller = power_vec<5>(hn::Mul(below, hn::Set(d, kToExponent<C>)));
  const auto more = hn::IfThenElse(hn::IsNaN(smaller), smaller, hn::Log1p(d, smaller));
  const auto top = hn::IfThenElse(higher, sink, sum.lse), rest = hn::IfThenElse(higher, more, hn::Add(sum.low, more));
  const auto lse = hn::Add(top, rest);
  const auto low = hn::IfThenElseZero(hn::IsFinite(lse), hn::Add(hn::Sub(top, lse), rest));
  const auto kept = hn::Div(hn::IfThenElse(higher, smaller, one), hn::Add(one, smaller));
  return {{hn::IfThenElse(none, sum.lse, lse), hn::IfThenElse(none, sum.low, low)}, hn::IfThenElse(none, one, kept)};
}

// ---- dropout: the attention stream of base/philox.h over vectors, a call per column and class of keys ----

// Word 0 after so many rounds chooses the threshold.
inline constexpr int kRoundsToThreshold = 5;

// The calls of a vector of columns: whose they are, and which of their words each column takes.
struct ColumnCalls {
  VecU32 query, head, octet;

  template <class C>
  HWY_INLINE ColumnCalls(const Columns<C>& columns, ptrdiff_t c, int64_t first_head) {
    const Tag<uint32_t> d;
    const hn::RebindToSigned<Tag<uint32_t>> di;
    const auto at =
        hn::Add(hn::BitCast(d, hn::LoadU(di, columns.query + c)), hn::Set(d, static_cast<uint32_t>(columns.origin)));
    query = hn::Or(hn::ShiftLeft<3>(hn::ShiftRight<5>(at)), hn::And(at, hn::Set(d, 7u)));
    octet = hn::And(hn::ShiftRight<3>(at), hn::Set(d, 3u));
    head = hn::Add(hn::BitCast(d, hn::LoadU(di, columns.head + c)), hn::Set(d, static_cast<uint32_t>(first_head)));
  }
  HWY_INLINE bool same_calls(const ColumnCalls& other) const {
    const Tag<uint32_t> d;
    return hn::AllTrue(d, hn::And(hn::Eq(query, other.query), hn::Eq(head, other.head)));
  }
};

// The draws of keys key_call / 8 * 32 + key_call % 8 + {0, 8, 16, 24} and of each lane's queries, and the thresholds.
struct ColumnDraws {
  VecU32 words[4], threshold;

  HWY_INLINE void draw(const PhiloxKey& philox, uint32_t key_call, const ColumnCalls& calls, uint32_t lower,
                       uint32_t chance) {
    const Tag<uint32_t> d;
    words[0] = hn::Set(d, key_call), words[1] = calls.query, words[2] = calls.head;
    words[3] = hn::Set(d, philox.offset);
    philox_vec(words, philox.key0, philox.key1, 0, kRoundsToThreshold);
    threshold = hn::IfThenElse(hn::Lt(words[0], hn::Set(d, chance)), hn::Set(d, lower + 1), hn::Set(d, lower));
    philox_vec(words, philox.key0, philox.key1, kRoundsToThreshold, kPhiloxRounds);
  }
  HWY_INLINE VecU32 of(VecU32 octet) const {
    const Tag<uint32_t> d;
    const auto odd = hn::Ne(hn::And(octet, hn::Set(d, 1u)), hn::Zero(d)), high = hn::Gt(octet, hn::Set(d, 1u));
    return hn::IfThenElse(high, hn::IfThenElse(odd, words[3], words[2]), hn::IfThenElse(odd, words[1], words[0]));
  }
};

// keep[key - first][column] = 1 or 0 for keys [first, first + rows).
template <class C>
HWY_INLINE void fill_keep(C* keep, ptrdiff_t rows, const Dropout& dropout, int64_t sequence_index, int64_t num_heads,
                          int64_t first_head_of_group, const Columns<C>& columns, int64_t first) {
  if (dropout.p >= 1) return zero_row(keep, rows * columns.padded);
  const Tag<uint32_t> d;
  constexpr ptrdiff_t kLanes = lanes<uint32_t>();
  alignas(64) uint32_t kept[kLanes];
  const PhiloxKey philox = philox_key(dropout.philox_seed, dropout.philox_offset);
  const auto lower = static_cast<uint32_t>(dropout.p * 256);
  const uint32_t chance = drop_rule(dropout.p).chance;
  const int64_t first_head = sequence_index * num_heads + first_head_of_group;
  for (int64_t block = first / 32 * 32; block < first + rows; block += 32) {
    for (int key = 0; key < 8; ++key) {
      ColumnCalls calls(columns, 0, first_head);
      ColumnDraws draws;
      for (ptrdiff_t c = 0; c < columns.padded; c += kLanes) {
        // Neighbouring vectors often share their calls: queries 0 to 7, 8 to 15, ...
        const ColumnCalls next(columns, c, first_head);
        if (c == 0 || !next.same_calls(calls)) draws.draw(philox, block / 4 + key, next, lower, chance);
        calls = next;
        auto bytes = draws.of(calls.octet);
        for (ptrdiff_t row = block + key - first; row < block + 32 - first; row += 8) {
          const auto here = hn::And(bytes, hn::Set(d, 255u));
          bytes = hn::ShiftRight<8>(bytes);
          if (row < 0 || row >= rows) continue;
          hn::Store(hn::IfThenZeroElse(hn::Lt(here, draws.threshold), hn::Set(d, 1u)), d, kept);
          C* const to = keep + row * columns.padded + c;
          for (ptrdiff_t lane = 0; lane < kLanes; ++lane) to[lane] = static_cast<C>(static_cast<int32_t>(kept[lane]));
        }
      }
    }
  }
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
