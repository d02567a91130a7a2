// Decode on vectors, straight from the rows of K and V, for up to 16 rows per stream (decode_streams-inl.h).
//
//   per 32 keys:             S = Q K^T   tiles of kRows rows x (lanes / kRows) keys: lane = key * kRows + row
//                            bias, mask, online softmax on the same [key][row] array
//                            O += P V
//
// Products has both products: in the compute type (decode_fma-inl.h) or on pairs of bf16 (decode_dpbf16-inl.h).
//
// Each product takes a few keys of all streams, then the next few: in the order in which rows lie in memory. Rows are
// asked for a few keys ahead, whatever they are stored as.
#pragma once

#include <type_traits>

#include "xformers/kernels/cpu/attention/decode_fma-inl.h"
#include "xformers/kernels/cpu/attention/decode_streams-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

inline constexpr ptrdiff_t kDecodeKeys = 32;
inline constexpr ptrdiff_t kDecodeRows = 16;

template <class T, class Products = FmaProducts<T>>
class Decode : public DecodeStreams<T> {
  using Base = DecodeStreams<T>;
  using Query = typename Products::Query;
  using Base::key_rows_;
  using Base::num_streams_;
  using Base::p_;
  using Base::rows_;
  using typename Base::C;
  using typename Base::Row;
  static constexpr ptrdiff_t kLanes = lanes<C>();

 public:
  static HWY_INLINE void begin() {}
  static HWY_INLINE void end() {}

  HWY_INLINE Decode(const AttentionFwdParams& params, ForwardPartials<C> partials) : Base(params, partials) {}

  HWY_INLINE size_t lay_out(void* memory) {
    Arena arena(memory);
    q_stride_ = round_up(p_.shape.head_dim, Products::kStep);
    out_stride_ = round_up(p_.shape.head_dim_v, Products::kStep);
    const ptrdiff_t rows = num_streams_ * kDecodeRows;
    k_copy_ = arena.take<T>(key_rows_.copy_size(kDecodeKeys, p_.shape.head_dim));
    v_copy_ = arena.take<T>(key_rows_.copy_size(kDecodeKeys, p_.shape.head_dim_v));
    rows_ = arena.take<Row>(rows);
    q_ = arena.take<Query>(rows * q_stride_);
    out_ = arena.take<C>(rows * out_stride_);
    scores_ = arena.take<C>(rows * kDecodeKeys + kLanes);  // a vector may be read beyond the last row's keys
    factor_ = arena.take<C>(rows);
    visible_ = arena.take<uint32_t>(p_.blocks.present() ? rows : 0);
    return arena.bytes();
  }

  HWY_NOINLINE void run(const ForwardTask& task) {
    const Sequence sequence = sequence_at(p_.shape, p_.seq, task.sequence);
    const Band band(p_.band, sequence);
    const ptrdiff_t per_stream = Base::rows_per_stream(task), num_rows = num_streams_ * per_stream;
    Base::start_rows(task, num_rows);
    for (ptrdiff_t r = 0; r < num_rows; ++r) {
      const T* q =
          row_of<const T>(p_.q, sequence.batch, sequence.q_begin + rows_[r].query, rows_[r].group, rows_[r].head);
      Products::take_query(q, p_.shape.head_dim, q_ + r * q_stride_);
      zero_row(out_ + r * out_stride_, out_stride_);
    }
    const auto step_from = [&](int64_t key) HWY_ATTR {
      return Base::next_step(min_of(key, task.keys.end), task.keys.end, kDecodeKeys, num_rows);
    };
    for (int64_t key = step_from(task.keys.begin), after; key < task.keys.end; key = after) {
      const Range keys{key, min_of(key + kDecodeKeys, task.keys.end)};
      if (p_.blocks.present()) find_visible(keys, num_rows);
      after = step_from(keys.end);
      score_keys(keys, task.keys.end, sequence, per_stream);
      for (ptrdiff_t first = 0; first < num_rows; first += per_stream) {
        for_each_tile(first, first + per_stream, [&](ptrdiff_t row, auto rows) HWY_ATTR {
          weigh_keys<decltype(rows)::value>(row, keys, band, sequence);
        });
      }
      add_values(keys, task.keys.end, sequence, per_stream);
    }
    for (ptrdiff_t r = 0; r < num_rows; ++r) {
      Products::order_dims(out_ + r * out_stride_, out_stride_);
      Base::finish(r, out_ + r * out_stride_, task, sequence);
    }
  }

 private:
  // Rows [begin, end) by fours, then by twos and ones: visit(first row, std::integral_constant of how many).
  template <class Visit>
  static HWY_INLINE void for_each_tile(ptrdiff_t begin, ptrdiff_t end, const Visit& visit) {
    ptrdiff_t row = begin;
    if constexpr (kLanes >= 4) {
      for (; row + 4 <= end; row += 4) visit(row, std::integral_constant<int, 4>());
    }
    if constexpr (kLanes >= 2) {
      for (; row + 2 <= end; row += 2) visit(row, std::integral_constant<int, 2>());
    }
    for (; row < end; ++row) visit(row, std::integral_constant<int, 1>());
  }

  // visit(stream, first key, count) for all streams and all steps of keys of a block, in the order in which their rows
  // lie in memory.
  template <class Visit>
  HWY_INLINE void in_memory_order(const HeadsTensor& tensor, ptrdiff_t num_keys, ptrdiff_t step, ptrdiff_t per_stream,
                                  const Visit& visit) const {
    const AttentionShape& shape = p_.shape;
    const bool by_group = Base::shared_ || shape.heads_per_group == 1;
    const bool keys_outside = tensor.seq_stride >= (by_group ? tensor.group_stride : tensor.head_stride);
    const ptrdiff_t num_steps = (num_keys + step - 1) / step;
    const ptrdiff_t outer = keys_outside ? num_steps : num_streams_, inner = keys_outside ? num_streams_ : num_steps;
    for (ptrdiff_t i = 0; i < outer; ++i) {
      for (ptrdiff_t j = 0; j < inner; ++j) {
        const ptrdiff_t stream = keys_outside ? j : i, key = (keys_outside ? i : j) * step;
        if (p_.blocks.present() && !sees_any(stream * per_stream, per_stream)) continue;
        visit(stream, key, min_of(step, num_keys - key));
      }
    }
  }

  // The keys that are asked for together with these: as many, and at least 8, later.
  static HWY_INLINE Range ahead(Range keys, int64_t end) {
    const int64_t distance = max_of(keys.end - keys.begin, 8);
    return {min_of(keys.begin + distance, end), min_of(keys.end + distance, end)};
  }

  // S = Q K^T of a block of keys, all rows.
  HWY_INLINE void score_keys(Range keys, int64_t end, const Sequence& sequence, ptrdiff_t per_stream) {
    // As many keys at a time as the tile with the fewest rows takes.
    const ptrdiff_t fewest = per_stream % 2 || kLanes < 2 ? 1 : per_stream % 4 || kLanes < 4 ? 2 : 4;
    const ptrdiff_t step = max_of(kLanes / fewest, 4);
    in_memory_order(
        p_.k, keys.end - keys.begin, step, per_stream, [&](ptrdiff_t stream, ptrdiff_t key, ptrdiff_t count) HWY_ATTR {
          const Row& first = rows_[stream * per_stream];
          const Range here{keys.begin + key, keys.begin + key + count};
          key_rows_.fetch_keys(sequence, ahead(here, end), first.group, first.head);
          const Rows<T> k = key_rows_.keys(sequence, here, first.group, first.head, {k_copy_, p_.shape.head_dim});
          for_each_tile(stream * per_stream, (stream + 1) * per_stream, [&](ptrdiff_t row, auto rows) HWY_ATTR {
            score_tile<decltype(rows)::value>(row, k, key, count);
          });
        });
  }

  template <int kRows>
  HWY_INLINE void score_tile(ptrdiff_t row, const Rows<T>& k, ptrdiff_t key, ptrdiff_t count) {
    constexpr ptrdiff_t kTileKeys = kLanes / kRows;
    for (ptrdiff_t n = 0; n < count; n += kTileKeys) {
      const T* keys[kTileKeys];  // keys past the end repeat the last one; they are masked later
#pragma GCC unroll 16
      for (ptrdiff_t j = 0; j < kTileKeys; ++j) keys[j] = k.data + min_of(n + j, count - 1) * k.stride;
      const auto scores = Products::template scores<kRows>(q_ + row * q_stride_, q_stride_, keys, p_.shape.head_dim);
      hn::StoreU(scores, Tag<C>(), scores_ + row * kDecodeKeys + (key + n) * kRows);
    }
  }

  // Scores of rows [row, row + kRows) become weights, relative to the rows' maxima so far.
  template <int kRows>
  HWY_INLINE void weigh_keys(ptrdiff_t row, Range keys, const Band& band, const Sequence& sequence) {
    if (p_.blocks.present() && !sees_any(row, kRows)) {
      for (int r = 0; r < kRows; ++r) factor_[row + r] = C(1);
      zero_row(scores_ + row * kDecodeKeys, kRows * kDecodeKeys);
      return;
    }
    const Tag<C> d;
    constexpr ptrdiff_t kTileKeys = kLanes / kRows;
    const ptrdiff_t padded = round_up(keys.end - keys.begin, kTileKeys);
    C* const scores = scores_ + row * kDecodeKeys;
    if (needs_scaling(p_)) {
      const auto scale = hn::Set(d, static_cast<C>(p_.softmax_scale));
      for (ptrdiff_t i = 0; i < padded * kRows; i += kLanes)
        hn::StoreU(hn::Mul(hn::LoadU(d, scores + i), scale), d, scores + i);
    }
    if (p_.mods.change_scores()) {
      Base::template modify_rows<kRows>(scores, padded * kRows, rows_ + row, kRows, keys, sequence);
    }
    mask_rows<kRows>(row, keys, padded, band);

    // Lanes hold kTileKeys keys of each row side by side; every row's maximum is copied to all of its lanes. It ignores
    // NaN, which the sum keeps.
    const auto to_exponent = hn::Set(d, score_factor<C>(p_) * kToExponent<C>);
    alignas(64) C by_lane[kLanes], base_by_lane[kLanes];
    C* const factor = factor_ + row;
    auto block_max = hn::LoadU(d, scores);
    for (ptrdiff_t i = kLanes; i < padded * kRows; i += kLanes)
      block_max = hn::Max(block_max, hn::LoadU(d, scores + i));
    hn::Store(block_max, d, by_lane);
    for (int r = 0; r < kRows; ++r) {
      Row& state = rows_[row + r];
      C highest = state.max;
      for (ptrdiff_t lane = r; lane < kLanes; lane += kRows)
        highest = by_lane[lane] > highest ? by_lane[lane] : highest;
      const C base = highest == -kInfinity<C> ? C(0) : highest;  // -inf minus itself would be NaN
      factor[r] = hn::GetLane(power_vec<5>(hn::Mul(hn::Set(d, state.max - base), to_exponent)));
      state.max = highest;
      for (ptrdiff_t lane = r; lane < kLanes; lane += kRows) base_by_lane[lane] = base;
    }
    const auto base = hn::Load(d, base_by_lane);
    auto sum = hn::Zero(d);
    for (ptrdiff_t i = 0; i < padded * kRows; i += kLanes) {
      const auto p = power_vec<Exp2Degree<T>::value>(hn::Mul(hn::Sub(hn::LoadU(d, scores + i), base), to_exponent));
      sum = hn::Add(sum, p);
      hn::StoreU(p, d, scores + i);
    }
    hn::Store(sum, d, by_lane);
    for (int r = 0; r < kRows; ++r) {
      C total = rows_[row + r].sum * factor[r];
      for (ptrdiff_t lane = r; lane < kLanes; lane += kRows) total += by_lane[lane];
      rows_[row + r].sum = total;
    }
  }

  // O = factor * O + P V of a block of keys, all rows.
  HWY_INLINE void add_values(Range keys, int64_t end, const Sequence& sequence, ptrdiff_t per_stream) {
    constexpr ptrdiff_t kStepKeys = Products::kValueKeys;
    static constexpr C kOnes[4] = {1, 1, 1, 1};
    in_memory_order(
        p_.v, keys.end - keys.begin, kStepKeys, per_stream,
        [&](ptrdiff_t stream, ptrdiff_t key, ptrdiff_t count) HWY_ATTR {
          const Row& first = rows_[stream * per_stream];
          const Range here{keys.begin + key, keys.begin + key + count};
          key_rows_.fetch_values(sequence, ahead(here, end), first.group, first.head);
          const Rows<T> v = key_rows_.values(sequence, here, first.group, first.head, {v_copy_, p_.shape.head_dim_v});
          for_each_tile(stream * per_stream, (stream + 1) * per_stream, [&](ptrdiff_t row, auto rows) HWY_ATTR {
            constexpr int kRows = decltype(rows)::value;
            Products::template add_values<kRows>(out_ + row * out_stride_, out_stride_,
                                                 scores_ + row * kDecodeKeys + key * kRows, v, count,
                                                 p_.shape.head_dim_v, key == 0 ? factor_ + row : kOnes);
          });
        });
  }

  // Keys that a row may not see, and those past the end, become -inf.
  template <int kRows>
  HWY_INLINE void mask_rows(ptrdiff_t row, Range keys, ptrdiff_t padded, const Band& band) {
    for (int r = 0; r < kRows; ++r) {
      C* const scores = scores_ + row * kDecodeKeys + r;
      const Range seen = Base::visible(rows_[row + r], keys, band);
      for (int64_t n = 0; n < seen.begin; ++n) scores[n * kRows] = -kInfinity<C>;
      for (int64_t n = seen.end; n < padded; ++n) scores[n * kRows] = -kInfinity<C>;
      if (!p_.blocks.present() || visible_[row + r] == ~uint32_t{0}) continue;
      for (int64_t n = seen.begin; n < seen.end; ++n) {
        if (!(visible_[row + r] >> n & 1)) scores[n * kRows] = -kInfinity<C>;
      }
    }
  }

  // visible_: which of these keys each row sees, as far as blocks say, the lowest bit first.
  HWY_NOINLINE void find_visible(Range keys, ptrdiff_t num_rows) {
    static_assert(kDecodeKeys == 2 * kSquare);
    for (ptrdiff_t r = 0; r < num_rows; ++r) {
      BlockRow& blocks = rows_[r].blocks;
      visible_[r] = 0;
      if (blocks.next_key(p_.blocks, keys.begin, keys.end) >= keys.end) continue;
      for (int64_t key = keys.begin; key < keys.end; key += kSquare) {
        const uint32_t word = BlockRow::visible_keys(p_.blocks, blocks.entry_of(p_.blocks, key), rows_[r].query, key);
        visible_[r] |= word << (key - keys.begin);
      }
    }
  }
  HWY_INLINE bool sees_any(ptrdiff_t row, ptrdiff_t count) const {
    uint32_t any = 0;
    for (ptrdiff_t r = row; r < row + count; ++r) any |= visible_[r];
    return any != 0;
  }

  ptrdiff_t q_stride_, out_stride_;
  T *k_copy_, *v_copy_;
  uint32_t* visible_;  // of a block mask: [rows], of a block of keys
  Query* q_;           // [rows, head_dim]
  C *out_, *scores_;   // [rows, head_dim_v], [tiles][keys, rows of the tile]
  C* factor_;          // what a row of out is multiplied by
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
