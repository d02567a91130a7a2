// Decode on plain vectors, straight from the rows of K and V, for up to 16 rows per stream (decode_streams-inl.h).
//
//   per stream and 32 keys:  S = Q K^T   tiles of kRows rows x (lanes / kRows) keys, one accumulator vector each,
//   summed
//                                        across lanes together: lane = key * kRows + row
//                            bias, mask, online softmax on the same [key][row] array
//                            O += P V    kRows x 4 vectors of accumulators over the block's keys
//
// Meanwhile the next block is prefetched row by row in the order in which it lies in memory, which the streams' own
// accesses are not (measured: 17 GB/s a core with it, 8 without, in bf16).
#pragma once

#include "xformers/kernels/cpu/attention/decode_streams-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

inline constexpr ptrdiff_t kDecodeKeys = 32;
inline constexpr ptrdiff_t kDecodeRows = 16;

// The first `count` elements as a vector, the rest zero.
template <class T>
HWY_INLINE auto load_first(const T* p, ptrdiff_t count) {
  using C = typename ComputeOf<T>::type;
  alignas(64) C widened[lanes<C>()] = {};
  for (ptrdiff_t i = 0; i < count; ++i) widened[i] = static_cast<C>(to_compute(p[i]));
  return hn::Load(Tag<C>(), widened);
}

// Lane i of the result is the sum over the lanes of v[i]; kCount = lanes. Adds neighbours, then neighbours of those.
template <int kCount, class C>
HWY_INLINE Vec<C> sum_each(Vec<C>* v) {
  const Tag<C> d;
  if constexpr (kCount == 1) {
    return v[0];
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < kCount / 2; ++i) {
      v[i] = hn::Add(hn::ConcatEven(d, v[2 * i + 1], v[2 * i]), hn::ConcatOdd(d, v[2 * i + 1], v[2 * i]));
    }
    return sum_each<kCount / 2, C>(v);
  }
}

template <class T>
class Decode : public DecodeStreams<T> {
  using Base = DecodeStreams<T>;
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
    q_stride_ = round_up(p_.shape.head_dim, kLanes);
    out_stride_ = round_up(p_.shape.head_dim_v, kLanes);
    const ptrdiff_t rows = num_streams_ * kDecodeRows;
    k_copy_ = arena.take<T>(key_rows_.copy_size(kDecodeKeys, p_.shape.head_dim));
    v_copy_ = arena.take<T>(key_rows_.copy_size(kDecodeKeys, p_.shape.head_dim_v));
    rows_ = arena.take<Row>(rows);
    q_ = arena.take<C>(rows * q_stride_);
    out_ = arena.take<C>(rows * out_stride_);
    scores_ = arena.take<C>(kDecodeRows * kDecodeKeys);
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
      convert_row(q, q_ + r * q_stride_, p_.shape.head_dim);
      zero_row(q_ + r * q_stride_ + p_.shape.head_dim, q_stride_ - p_.shape.head_dim);
      zero_row(out_ + r * out_stride_, out_stride_);
    }
    const auto step_from = [&](int64_t key) HWY_ATTR {
      return Base::next_step(min_of(key, task.keys.end), task.keys.end, kDecodeKeys, num_rows);
    };
    for (int64_t key = step_from(task.keys.begin), after; key < task.keys.end; key = after) {
      const Range keys{key, min_of(key + kDecodeKeys, task.keys.end)};
      if (p_.blocks.present()) find_visible(keys, num_rows);
      after = step_from(keys.end);
      for (ptrdiff_t stream = 0; stream < num_streams_; ++stream) {
        if (p_.blocks.present() && !sees_any(stream * per_stream, per_stream)) continue;
        const Range next{after, min_of(after + kDecodeKeys, task.keys.end)};
        next_k_ = look_ahead(p_.k, p_.shape.head_dim, next, sequence, stream);
        next_v_ = look_ahead(p_.v, p_.shape.head_dim_v, next, sequence, stream);
        const Row& first = rows_[stream * per_stream];
        const Rows<T> k = key_rows_.keys(sequence, keys, first.group, first.head, {k_copy_, p_.shape.head_dim});
        const Rows<T> v = key_rows_.values(sequence, keys, first.group, first.head, {v_copy_, p_.shape.head_dim_v});
        for (ptrdiff_t r = stream * per_stream, end = r + per_stream; r < end;) {
          if (kLanes >= 4 && end - r >= 4) {
            add_keys<kLanes >= 4 ? 4 : 1>(r, k, v, keys, band, sequence);
            r += 4;
          } else if (kLanes >= 2 && end - r >= 2) {
            add_keys<kLanes >= 2 ? 2 : 1>(r, k, v, keys, band, sequence);
            r += 2;
          } else {
            add_keys<1>(r, k, v, keys, band, sequence);
            r += 1;
          }
        }
      }
    }
    for (ptrdiff_t r = 0; r < num_rows; ++r) Base::finish(r, out_ + r * out_stride_, task, sequence);
  }

 private:
  // Rows of K or V to prefetch, in memory order, one per call of next().
  class Ahead {
   public:
    HWY_INLINE void next() {
      if (left_ == 0) return;
      --left_;
      for (ptrdiff_t c = 0; c < dim_; c += 64 / static_cast<ptrdiff_t>(sizeof(T))) __builtin_prefetch(row_ + c, 0, 2);
      row_ += inner_stride_;
      if (++inner_ == inner_count_) {
        inner_ = 0;
        row_ += outer_stride_ - inner_count_ * inner_stride_;
      }
    }

   private:
    friend class Decode;
    const T* row_;
    ptrdiff_t left_ = 0, dim_, inner_, inner_count_, inner_stride_, outer_stride_;
  };

  // This stream's share of the rows that the next block has in all streams: as many as one stream has keys.
  HWY_INLINE Ahead look_ahead(const HeadsTensor& tensor, ptrdiff_t dim, Range next, const Sequence& sequence,
                              ptrdiff_t stream) const {
    const AttentionShape& shape = p_.shape;
    const bool one_stride = Base::shared_ || shape.heads_per_group == 1 ||
                            tensor.group_stride == shape.heads_per_group * tensor.head_stride;
    const ptrdiff_t stream_stride =
        Base::shared_ || shape.heads_per_group == 1 ? tensor.group_stride : tensor.head_stride;
    const ptrdiff_t num_keys = next.end - next.begin;
    Ahead ahead;
    const RowRun run = num_keys > 0 ? key_rows_.in_place(sequence, next.begin, next.end) : RowRun{0, 0};
    if (num_keys == 0 || run.count < num_keys || !one_stride) return ahead;
    const bool keys_outside = tensor.seq_stride >= stream_stride;
    ahead.left_ = num_keys;
    ahead.dim_ = dim;
    ahead.inner_count_ = keys_outside ? num_streams_ : num_keys;
    ahead.inner_stride_ = keys_outside ? stream_stride : tensor.seq_stride;
    ahead.outer_stride_ = keys_outside ? tensor.seq_stride : stream_stride;
    const ptrdiff_t first = stream * num_keys, outer = first / ahead.inner_count_;
    ahead.inner_ = first % ahead.inner_count_;
    ahead.row_ = row_of<const T>(tensor, sequence.batch, run.row, 0, 0) + outer * ahead.outer_stride_ +
                 ahead.inner_ * ahead.inner_stride_;
    return ahead;
  }

  // Rows [row, row + kRows) with these keys.
  template <int kRows>
  HWY_INLINE void add_keys(ptrdiff_t row, const Rows<T>& k, const Rows<T>& v, Range keys, const Band& band,
                           const Sequence& sequence) {
    const Tag<C> d;
    constexpr ptrdiff_t kTileKeys = kLanes / kRows;
    const ptrdiff_t count = keys.end - keys.begin, padded = round_up(count, kTileKeys);

    const auto scale = hn::Set(d, needs_scaling(p_) ? static_cast<C>(p_.softmax_scale) : C(1));
    for (ptrdiff_t n = 0; n < padded; n += kTileKeys) {
      for (ptrdiff_t i = 0; i < kTileKeys; ++i) next_k_.next();
      hn::StoreU(hn::Mul(tile_scores<kRows>(row, k, n, count), scale), d, scores_ + n * kRows);
    }
    if (p_.mods.change_scores()) {
      Base::template modify_rows<kRows>(scores_, padded * kRows, rows_ + row, kRows, keys, sequence);
    }
    mask_rows<kRows>(row, keys, padded, band);

    // Lanes hold kTileKeys keys of each row side by side; every row's maximum is copied to all of its lanes. It ignores
    // NaN, which the sum keeps.
    const auto to_exponent = hn::Set(d, score_factor<C>(p_) * kToExponent<C>);
    alignas(64) C by_lane[kLanes], base_by_lane[kLanes], factor[kRows];
    auto block_max = hn::LoadU(d, scores_);
    for (ptrdiff_t i = kLanes; i < padded * kRows; i += kLanes)
      block_max = hn::Max(block_max, hn::LoadU(d, scores_ + i));
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
      const auto p = power_vec<Exp2Degree<T>::value>(hn::Mul(hn::Sub(hn::LoadU(d, scores_ + i), base), to_exponent));
      sum = hn::Add(sum, p);
      hn::StoreU(p, d, scores_ + i);
    }
    hn::Store(sum, d, by_lane);
    for (int r = 0; r < kRows; ++r) {
      C total = rows_[row + r].sum * factor[r];
      for (ptrdiff_t lane = r; lane < kLanes; lane += kRows) total += by_lane[lane];
      rows_[row + r].sum = total;
    }
    add_values<kRows>(row, v, count, factor);
  }

  // q k^T of kRows rows and kTileKeys keys from n on; keys past `count` repeat the last one (they are masked later).
  template <int kRows>
  HWY_INLINE Vec<C> tile_scores(ptrdiff_t row, const Rows<T>& k, ptrdiff_t n, ptrdiff_t count) const {
    const Tag<C> d;
    constexpr int kTileKeys = kLanes / kRows;
    const T* key_rows[kTileKeys];
#pragma GCC unroll 16
    for (int j = 0; j < kTileKeys; ++j) key_rows[j] = k.data + min_of(n + j, count - 1) * k.stride;
    const C* const q = q_ + row * q_stride_;
    Vec<C> acc[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) acc[i] = hn::Zero(d);
    ptrdiff_t c = 0;
    for (; c + kLanes <= p_.shape.head_dim; c += kLanes) {
#pragma GCC unroll 16
      for (int j = 0; j < kTileKeys; ++j) {
        const auto key = load_vec(key_rows[j] + c);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r)
          acc[j * kRows + r] = hn::MulAdd(hn::LoadU(d, q + r * q_stride_ + c), key, acc[j * kRows + r]);
      }
    }
    if (c < p_.shape.head_dim) {
#pragma GCC unroll 16
      for (int j = 0; j < kTileKeys; ++j) {
        const auto key = load_first(key_rows[j] + c, p_.shape.head_dim - c);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r)
          acc[j * kRows + r] = hn::MulAdd(hn::LoadU(d, q + r * q_stride_ + c), key, acc[j * kRows + r]);
      }
    }
    return sum_each<kLanes, C>(acc);
  }

  // Keys that a row may not see, and those past the end, become -inf.
  template <int kRows>
  HWY_INLINE void mask_rows(ptrdiff_t row, Range keys, ptrdiff_t padded, const Band& band) {
    for (int r = 0; r < kRows; ++r) {
      const Range seen = Base::visible(rows_[row + r], keys, band);
      for (int64_t n = 0; n < seen.begin; ++n) scores_[n * kRows + r] = -kInfinity<C>;
      for (int64_t n = seen.end; n < padded; ++n) scores_[n * kRows + r] = -kInfinity<C>;
      if (!p_.blocks.present() || visible_[row + r] == ~uint32_t{0}) continue;
      for (int64_t n = seen.begin; n < seen.end; ++n) {
        if (!(visible_[row + r] >> n & 1)) scores_[n * kRows + r] = -kInfinity<C>;
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

  // O = factor * O + P V.
  template <int kRows>
  HWY_INLINE void add_values(ptrdiff_t row, const Rows<T>& v, ptrdiff_t count, const C* factor) {
    const ptrdiff_t dim_v = p_.shape.head_dim_v;
    ptrdiff_t c = 0;
    for (; c + 4 * kLanes <= dim_v; c += 4 * kLanes) add_value_columns<kRows, 4, false>(row, v, c, count, factor);
    for (; c + kLanes <= dim_v; c += kLanes) add_value_columns<kRows, 1, false>(row, v, c, count, factor);
    if (c < dim_v) add_value_columns<kRows, 1, true>(row, v, c, count, factor);
  }

  template <int kRows, int kVecs, bool kTail>
  HWY_INLINE void add_value_columns(ptrdiff_t row, const Rows<T>& v, ptrdiff_t c, ptrdiff_t count, const C* factor) {
    const Tag<C> d;
    Vec<C> acc[kRows][kVecs];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < kVecs; ++i) {
        acc[r][i] = hn::Mul(hn::Set(d, factor[r]), hn::LoadU(d, out_ + (row + r) * out_stride_ + c + i * kLanes));
      }
    }
    for (ptrdiff_t n = 0; n < count; ++n) {
      const T* const value_row = v.data + n * v.stride + c;
      next_v_.next();
      Vec<C> value[kVecs];
#pragma GCC unroll 4
      for (int i = 0; i < kVecs; ++i) {
        if constexpr (kTail) {
          value[i] = load_first(value_row, p_.shape.head_dim_v - c);
        } else {
          value[i] = load_vec(value_row + i * kLanes);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const auto p = hn::Set(d, scores_[n * kRows + r]);
#pragma GCC unroll 4
        for (int i = 0; i < kVecs; ++i) acc[r][i] = hn::MulAdd(p, value[i], acc[r][i]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < kVecs; ++i) hn::StoreU(acc[r][i], d, out_ + (row + r) * out_stride_ + c + i * kLanes);
    }
  }

  ptrdiff_t q_stride_, out_stride_;
  T *k_copy_, *v_copy_;
  Ahead next_k_, next_v_;
  uint32_t* visible_;      // of a block mask: [rows], of a block of keys
  C *q_, *out_, *scores_;  // [rows, head_dim], [rows, head_dim_v], [keys, rows of a tile]
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
