// The columns of a block of scores, and where rows of tensors lie.
//
// Blocks are transposed: scores[key][column], where a column is one (head, query) pair. Row statistics are then plain
// vectors over columns, no reduction runs across a vector, and neither key nor value needs transposing in memory.
#pragma once

#include "xformers/kernels/cpu/attention/plan.h"
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
HWY_INLINE T* bias_row(const ScoreBias& bias, int64_t sequence, int64_t query, int64_t group, int64_t head) {
  return static_cast<T*>(bias.data) + bias.offset(sequence, group, head, query, 0);
}
template <class C>
HWY_INLINE C number_of(const HeadNumbers& numbers, int64_t sequence, int64_t group, int64_t head) {
  return static_cast<const C*>(numbers.data)[numbers.offset(sequence, group, head)];
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

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
