// What happens to a block of scores between the two products: bias, mask, dropout.
//
// Blocks are transposed: scores[key][column], where a column is one (head, query) pair. Row statistics are then plain
// vectors over columns, no reduction runs across a vector, and neither key nor value needs transposing in memory.
#pragma once

#include "xformers/kernels/cpu/attention/plan.h"
#include "xformers/kernels/cpu/base/philox-inl.h"
#include "xformers/kernels/cpu/base/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

template <class C>
inline constexpr C kInfinity = static_cast<C>(__builtin_inf());

// A score is s = softmax_scale * (q k) + bias, in natural units: no factor log2(e), which would carry the lowest
// numbers to -inf. The difference to the row's maximum comes first, and only then the factor that powers want. -inf
// alone means hidden. Exponents are those of 2 for fp32, whose powers are cheap, and those of e for fp64, where a
// change of base would cost accuracy: kToExponent times a natural exponent.
template <class C>
inline constexpr C kToExponent = static_cast<C>(sizeof(C) == 8 ? 1 : 1.4426950408889634074);

template <int kDegree>
HWY_INLINE Vec<float> power_vec(Vec<float> x) {
  return exp2_vec<kDegree>(x);
}
template <int kDegree>
HWY_INLINE Vec<double> power_vec(Vec<double> x) {
  const Tag<double> d;
  const auto lowest = hn::Set(d, -700.0);
  return hn::IfThenZeroElse(hn::Lt(x, lowest), hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, hn::Max(x, lowest))));
}

template <class T>
HWY_INLINE T* row_of(const HeadsTensor& tensor, int64_t batch, int64_t row, int64_t group, int64_t head) {
  return static_cast<T*>(tensor.data) + tensor.offset(batch, row, group, head);
}
template <class C>
HWY_INLINE C* row_of(const RowTensor& tensor, int64_t batch, int64_t row, int64_t group, int64_t head) {
  return static_cast<C*>(tensor.data) + tensor.offset(batch, group, head, row);
}
template <class T>
HWY_INLINE T* bias_row(const ScoreBias& bias, int64_t batch, int64_t query, int64_t group, int64_t head) {
  return static_cast<T*>(bias.data) + bias.offset(batch, group, head, query, 0);
}

// The columns of one block: which head and query each one is.
template <class C>
struct Columns {
  ptrdiff_t count;   // in use
  ptrdiff_t padded;  // count rounded up: the width of the block's arrays
  Range queries;     // all queries among them
  int32_t head[kBlockColumns];
  int32_t query[kBlockColumns];                 // from origin
  alignas(64) C query_position[kBlockColumns];  // the same, to compare with
  int64_t origin;                               // a query of the sequence
};

// [begin, begin + count) of (head, query) pairs, queries running faster; the width a multiple of `align` (16 or 32).
template <class C>
HWY_INLINE void fill_columns(Columns<C>& columns, ptrdiff_t begin, ptrdiff_t count, ptrdiff_t align, Range queries,
                             int64_t first_head) {
  const int64_t num_queries = queries.end - queries.begin;
  columns.count = count;
  columns.padded = round_up(count, align);
  columns.origin = queries.begin;
  int64_t low = num_queries, high = 0;
  for (ptrdiff_t c = 0; c < columns.padded; ++c) {
    const int64_t index = begin + (c < count ? c : 0);
    const int64_t query = index % num_queries;
    columns.head[c] = static_cast<int32_t>(first_head + index / num_queries);
    columns.query[c] = static_cast<int32_t>(query);
    columns.query_position[c] = static_cast<C>(query);
    low = query < low ? query : low;
    high = query > high ? query : high;
  }
  columns.queries = {queries.begin + low, queries.begin + high + 1};
}

// Copies the rows of the columns next to each other: to[column][width], unused columns zero.
template <class T, class C>
HWY_INLINE void gather_rows(T* to, ptrdiff_t width, const HeadsTensor& tensor, const Sequence& sequence, int64_t group,
                            const Columns<C>& columns) {
  for (ptrdiff_t c = 0; c < columns.count; ++c) {
    const int64_t row = sequence.q_begin + columns.origin + columns.query[c];
    std::memcpy(to + c * width, row_of<const T>(tensor, sequence.batch, row, group, columns.head[c]),
                width * sizeof(T));
  }
  std::memset(static_cast<void*>(to + columns.count * width), 0, (columns.padded - columns.count) * width * sizeof(T));
}

// scores = scores * softmax_scale + bias, for keys [key, key + rows); -inf hides whatever score it meets. staging:
// 2 * 64 * 128 numbers.
template <class T, class C>
HWY_INLINE void add_bias(C* scores, ptrdiff_t rows, C softmax_scale, const ScoreBias& bias, int64_t batch,
                         int64_t group, const Columns<C>& columns, int64_t key, C* staging) {
  C* const transposed = staging + kBlockColumns * kBlockKeys;
  const ptrdiff_t padded_rows = round_up(rows, 16);
  for (ptrdiff_t c = 0; c < columns.count; ++c) {
    const T* from =
        bias_row<const T>(bias, batch, columns.origin + columns.query[c], group, columns.head[c]) + key * bias.k_stride;
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

// softmax_scale is left to the exponential, where it costs nothing, unless a bias comes between, it is not positive,
// which would spoil maxima and the -inf of masked scores, or no fused multiply-add keeps the product exact.
HWY_INLINE bool needs_scaling([[maybe_unused]] const AttentionProblem& problem) {
#if HWY_NATIVE_FMA
  return problem.mods.bias.data || !(problem.softmax_scale > 0);
#else
  return true;
#endif
}

// What the scores of the kernels are still to be multiplied by: positive.
template <class C>
HWY_INLINE C score_factor(const AttentionProblem& problem) {
  return needs_scaling(problem) ? C(1) : static_cast<C>(problem.softmax_scale);
}

template <class C>
HWY_INLINE void scale_scores(C* scores, ptrdiff_t count, C softmax_scale) {
  const Tag<C> d;
  const auto scale = hn::Set(d, softmax_scale);
  for (ptrdiff_t i = 0; i < count; i += lanes<C>()) hn::StoreU(hn::Mul(hn::LoadU(d, scores + i), scale), d, scores + i);
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

// Bias and mask: -inf where a column does not see a key. False: all see all of them.
template <class T, class C>
HWY_INLINE bool finish_scores(C* scores, ptrdiff_t rows, const AttentionProblem& problem, const Band& band,
                              int64_t batch, int64_t group, const Columns<C>& columns, int64_t key, C* staging) {
  const C softmax_scale = static_cast<C>(problem.softmax_scale);
  if (problem.mods.bias.data) {
    add_bias<T>(scores, rows, softmax_scale, problem.mods.bias, batch, group, columns, key, staging);
  } else if (needs_scaling(problem)) {
    scale_scores(scores, rows * columns.padded, softmax_scale);
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
