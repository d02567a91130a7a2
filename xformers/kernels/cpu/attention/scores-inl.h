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

// Exponents are those of 2 for fp32, whose powers are cheap, and those of e for fp64, where a change of base would cost
// accuracy: kToExponent times a natural exponent, kFromExponent times one of these.
template <class C>
inline constexpr C kToExponent = static_cast<C>(sizeof(C) == 8 ? 1 : 1.4426950408889634074);
template <class C>
inline constexpr C kFromExponent = static_cast<C>(sizeof(C) == 8 ? 1 : 0.69314718055994530942);

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
  return static_cast<T*>(tensor.data) + batch * tensor.batch_stride + row * tensor.seq_stride +
         group * tensor.group_stride + head * tensor.head_stride;
}
template <class C>
HWY_INLINE C* row_of(const RowTensor& tensor, int64_t batch, int64_t row, int64_t group, int64_t head) {
  return static_cast<C*>(tensor.data) + batch * tensor.batch_stride + group * tensor.group_stride +
         head * tensor.head_stride + row;
}
template <class T>
HWY_INLINE T* bias_row(const ScoreBias& bias, int64_t batch, int64_t query, int64_t group, int64_t head) {
  return static_cast<T*>(bias.data) + batch * bias.batch_stride + group * bias.group_stride + head * bias.head_stride +
         query * bias.q_stride;
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

// scores = scores * scale_log2 + bias * log2(e), for keys [key, key + rows). staging: 2 * 64 * 128 numbers.
template <class T, class C>
HWY_INLINE void add_bias(C* scores, ptrdiff_t rows, C scale_log2, const ScoreBias& bias, int64_t batch, int64_t group,
                         const Columns<C>& columns, int64_t key, C* staging) {
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
  const auto scale = hn::Set(d, scale_log2), to_exponent = hn::Set(d, kToExponent<C>);
  for (ptrdiff_t i = 0; i < rows * columns.padded; i += lanes<C>()) {
    hn::StoreU(hn::MulAdd(hn::LoadU(d, scores + i), scale, hn::Mul(hn::LoadU(d, transposed + i), to_exponent)), d,
               scores + i);
  }
}

// The factor scale * log2(e) is left to the exponential, where it costs nothing, unless a bias comes between, or it is
// not positive, which would spoil maxima and the -inf of masked scores.
template <class C>
HWY_INLINE bool needs_scaling(C scale_log2, const ScoreBias& bias) {
  return bias.data || !(scale_log2 > 0);
}

template <class C>
HWY_INLINE void scale_scores(C* scores, ptrdiff_t count, C scale_log2) {
  const Tag<C> d;
  const auto scale = hn::Set(d, scale_log2);
  for (ptrdiff_t i = 0; i < count; i += lanes<C>()) hn::StoreU(hn::Mul(hn::LoadU(d, scores + i), scale), d, scores + i);
}

// Invisible scores become -inf. (Scores are still to be multiplied by a positive factor, see needs_scaling.)
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

// Bias and mask; returns the factor that is still to be applied.
template <class T, class C>
HWY_INLINE C finish_scores(C* scores, ptrdiff_t rows, double softmax_scale, const ScoreBias& bias, const Band& band,
                           int64_t batch, int64_t group, const Columns<C>& columns, int64_t key, C* staging) {
  C factor = static_cast<C>(softmax_scale * kToExponent<C>);
  if (bias.data) {
    add_bias<T>(scores, rows, factor, bias, batch, group, columns, key, staging);
  } else if (needs_scaling(factor, bias)) {
    scale_scores(scores, rows * columns.padded, factor);
  }
  if (needs_scaling(factor, bias)) factor = 1;
  if (!band.is_full(columns.queries, {key, key + rows})) mask_scores(scores, rows, band, columns, key);
  return factor;
}

// ---- dropout: base/philox.h over vectors, a call per column, block of 32 keys and pair of keys in eight ----
// keep[key - first][column] = 1 or 0 for keys [first, first + rows).
template <class C>
HWY_INLINE void fill_keep(C* keep, ptrdiff_t rows, const Dropout& dropout, int64_t sequence_index, int64_t num_heads,
                          int64_t first_head_of_group, const Columns<C>& columns, int64_t first) {
  if (dropout.p >= 1) return zero_row(keep, rows * columns.padded);
  const Tag<uint32_t> d;
  constexpr ptrdiff_t kLanes = lanes<uint32_t>();
  alignas(64) uint32_t query[kBlockColumns], head[kBlockColumns], draws[kLanes];
  for (ptrdiff_t c = 0; c < columns.padded; ++c) {
    query[c] = static_cast<uint32_t>(columns.origin + columns.query[c]);
    head[c] = static_cast<uint32_t>(sequence_index * num_heads + first_head_of_group + columns.head[c]);
  }
  const uint32_t threshold = drop_threshold(dropout.p);
  const PhiloxKey philox = philox_key(dropout.philox_seed, dropout.philox_offset);
  // The call of pair 0 to 3 draws for keys block + 2 * pair + 8 * word + (0 or 1).
  for (int64_t block = first / 32 * 32; block < first + rows; block += 32) {
    for (int pair = 0; pair < 4; ++pair) {
      for (ptrdiff_t c = 0; c < columns.padded; c += kLanes) {
        VecU32 words[4] = {hn::Set(d, static_cast<uint32_t>(block / 8 + pair)), hn::Load(d, query + c),
                           hn::Load(d, head + c), hn::Set(d, philox.offset)};
        philox_vec(words, philox.key0, philox.key1);
        for (int word = 0; word < 4; ++word) {
          const ptrdiff_t row = block + 2 * pair + 8 * word - first;
          hn::Store(words[word], d, draws);
          for (int half = 0; half < 2; ++half) {
            if (row + half < 0 || row + half >= rows) continue;
            C* const to = keep + (row + half) * columns.padded + c;
            for (ptrdiff_t lane = 0; lane < kLanes; ++lane) {
              to[lane] = half_word(draws[lane], half) >= threshold ? C(1) : C(0);
            }
          }
        }
      }
    }
  }
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
