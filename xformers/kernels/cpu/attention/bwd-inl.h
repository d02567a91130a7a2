// Backward attention of one task: one head, a range of keys, all queries. The score matrix is recomputed in blocks.
//
//   per 512 keys (1024 where a block mask leaves few of them):  pack K, K^T, V of those that are seen; dK = dV = 0
//     per block of 64 queries that see any of them (fewer where blocks of a mask are smaller):  pack Q, Q^T, dO, dO^T
//       per 128 of the keys:  S^T = K Q^T,  dP^T = V dO^T
//                             P^T = exp(S^T - lse - lse_low),  dS^T = P^T (dP^T - delta)
//                             dV += P^T dO,  dK += dS^T Q,  dQ^T += K^T dS^T
//     write dK, dV
//   write dQ, or leave it as this task's share where the keys of the head are split over tasks
//
// Blocks of scores are transposed (scores-inl.h), so none of the five products needs a transposed copy of them.
// Working memory: dQ of the head in the compute type, and the packed blocks.
#pragma once

#include "xformers/kernels/cpu/attention/block_walk-inl.h"
#include "xformers/kernels/cpu/attention/scores-inl.h"
#include "xformers/kernels/cpu/base/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

inline constexpr ptrdiff_t kMaxKeyBlocks = 8;

// Blocks of 128 keys that are packed together. Beside a block mask more: queries are loaded for few of them.
HWY_INLINE ptrdiff_t key_blocks(const AttentionProblem& problem) {
  return problem.blocks.present() && max_of(problem.shape.head_dim, problem.shape.head_dim_v) <= 64 ? kMaxKeyBlocks : 4;
}

// Below this an lse alone is exact enough (2^-21 in P): ordinary rows have the same bits with lse_low and without.
inline constexpr int kLargeLse = 16;

template <class Gemm>
class Backward {
  using T = typename Gemm::Element;
  using C = typename Gemm::Compute;
  using Left = typename Gemm::Left;
  using Right = typename Gemm::Right;
  static constexpr ptrdiff_t kLanes = lanes<C>();

 public:
  HWY_INLINE Backward(const AttentionBwdParams& params, C* shares)
      : p_(params),
        shares_(shares),
        width_(max_of(queries_in_one_block(params.blocks), Gemm::kDepthAlign)),
        align_(min_of(width_, 32)),
        num_key_blocks_(key_blocks(params)) {}

  // longest_own: BackwardPlan's.
  HWY_INLINE size_t lay_out(void* memory, int64_t longest_own) {
    Arena arena(memory);
    const ptrdiff_t dim = p_.shape.head_dim, dim_v = p_.shape.head_dim_v;
    for (ptrdiff_t b = 0; b < num_key_blocks_; ++b) {
      key_blocks_[b].k_memory = arena.take<char>(Gemm::left_size(kBlockKeys, dim));
      key_blocks_[b].kt_memory = arena.take<char>(Gemm::left_size(dim, kBlockKeys));
      key_blocks_[b].v_memory = arena.take<char>(Gemm::left_size(kBlockKeys, dim_v));
      key_blocks_[b].dk = arena.take<C>(kBlockKeys * round_up(dim, 16));
      key_blocks_[b].dv = arena.take<C>(kBlockKeys * round_up(dim_v, 16));
    }
    q_memory_ = arena.take<char>(Gemm::right_size(kBlockColumns, dim));
    qt_memory_ = arena.take<char>(Gemm::right_size(dim, kBlockColumns));
    dout_memory_ = arena.take<char>(Gemm::right_size(kBlockColumns, dim_v));
    doutt_memory_ = arena.take<char>(Gemm::right_size(dim_v, kBlockColumns));
    scores_ = arena.take<C>(kBlockKeys * kBlockColumns);
    dprobs_ = arena.take<C>(kBlockKeys * kBlockColumns);
    p_memory_ = arena.take<char>(Gemm::probs_size(kBlockKeys, kBlockColumns));
    ds_memory_ = arena.take<char>(Gemm::probs_size(kBlockKeys, kBlockColumns));
    dst_memory_ = arena.take<char>(Gemm::probs_size(kBlockKeys, kBlockColumns));
    const ptrdiff_t rows = max_of(round_up(dim, 32), round_up(dim_v, 32)) * kBlockColumns;
    staging_ = arena.take<C>(max_of(rows, 2 * kBlockKeys * kBlockColumns));
    keep_ = p_.dropout.p > 0 ? arena.take<C>(kBlockKeys * kBlockColumns) : nullptr;
    const bool capped = p_.mods.softcap > 0;
    cap_derivative_ = capped ? arena.take<C>(kBlockKeys * kBlockColumns) : nullptr;
    uncapped_ds_ = capped && wants_ds() ? arena.take<C>(kBlockKeys * kBlockColumns) : dprobs_;
    own_dq_ = arena.take<C>(dq_size(longest_own, dim));
    return arena.bytes();
  }

  // Returns -sum dS * |d(i) - j| where dslopes are wanted.
  HWY_NOINLINE double run(const BackwardTask& task) {
    const Sequence sequence = sequence_at(p_.shape, p_.seq, task.sequence);
    const Band band(p_.band, sequence);
    dslope_ = dsink_ = 0;
    sink_ = p_.dsinks.data ? number_of<C>(p_.mods.sinks, sequence.index, task.group, task.head) : C(0);
    Range with_sink{0, 0};  // queries whose share of dsink is in dsink_
    C* const dq = task.partial >= 0 ? shares_ + task.partial : own_dq_;
    zero_row(dq, dq_size(sequence.seqlen_q, p_.shape.head_dim));

    for (int64_t key = task.keys.begin; key < task.keys.end; key += num_key_blocks_ * kBlockKeys) {
      const Range keys{key, min_of(key + num_key_blocks_ * kBlockKeys, task.keys.end)};
      for (ptrdiff_t b = 0; key + b * kBlockKeys < keys.end; ++b) {
        const int64_t begin = key + b * kBlockKeys;
        start(key_blocks_[b], {begin, min_of(begin + kBlockKeys, keys.end)});
      }
      const Range queries = band.query_range(keys);
      sums_sink_ = p_.dsinks.data && task.first_keys && key == task.keys.begin;
      if (sums_sink_ && !queries.empty()) {
        with_sink = {queries.begin / width_ * width_, min_of(round_up(queries.end, width_), sequence.seqlen_q)};
      }
      for (int64_t query = queries.begin / width_ * width_; query < queries.end; query += width_) {
        const Range rows{query, min_of(query + width_, sequence.seqlen_q)};
        const Range seen = band.key_range(rows);
        fill_columns(columns_, 0, rows.end - rows.begin, align_, rows, task.head);
        rows_.start(p_.blocks, columns_, sequence.batch, task.group, key);
        bool loaded = sums_sink_;
        if (loaded) load_queries(rows, task, sequence);
        for (ptrdiff_t b = 0; key + b * kBlockKeys < keys.end; ++b) {
          KeyBlock& block = key_blocks_[b];
          const int64_t first = block.keys.begin;
          const ptrdiff_t begin = max_of(seen.begin - first, 0) / 32 * 32,
                          end = min_of(seen.end, block.keys.end) - first;
          const KeyRuns runs = rows_.runs(p_.blocks, first, begin, end, Gemm::kDepthAlign);
          if (runs.count == 0) continue;
          if (!loaded) load_queries(rows, task, sequence);
          loaded = true;
          if (!block.packed) pack(block, task, sequence);
          add_block(block, runs, task, band, sequence, dq_block(dq, query));
        }
      }
      for (ptrdiff_t b = 0; key + b * kBlockKeys < keys.end; ++b) finish(key_blocks_[b], task, sequence);
    }
    if (task.partial < 0) write_dq(dq, task.sequence, task.group, task.head);
    if (p_.dsinks.data && task.first_keys) {
      add_to_dsink({0, with_sink.begin}, task, sequence);
      add_to_dsink({with_sink.end, sequence.seqlen_q}, task, sequence);
      static_cast<C*>(p_.dsinks.data)[p_.dsinks.offset(sequence.index, task.group, task.head)] = static_cast<C>(dsink_);
    }
    return dslope_;
  }

  // Sums the shares of dQ in order and writes it.
  HWY_NOINLINE void merge(const BackwardMerge& merge) {
    const Sequence sequence = sequence_at(p_.shape, p_.seq, merge.sequence);
    C* const total = shares_ + merge.partial;
    const Tag<C> d;
    for (int64_t split = 1; split < merge.num_splits; ++split) {
      const C* share = total + split * merge.stride;
      for (int64_t i = 0; i < dq_size(sequence.seqlen_q, p_.shape.head_dim); i += kLanes) {
        hn::StoreU(hn::Add(hn::LoadU(d, total + i), hn::LoadU(d, share + i)), d, total + i);
      }
    }
    write_dq(total, merge.sequence, merge.group, merge.head);
  }

 private:
  struct KeyBlock {
    Range keys;
    bool packed;  // once somebody sees one of them
    char *k_memory, *kt_memory, *v_memory;
    Left k, kt, v;  // [keys, head_dim], [head_dim, keys], [keys, head_dim_v]
    C *dk, *dv;     // [keys, head_dim to 16], [keys, head_dim_v to 16]
  };

  // Whether dS is used for more than dQ and dK.
  HWY_INLINE bool wants_ds() const { return p_.dbias.data || p_.dslopes.data; }

  HWY_INLINE C* dq_block(C* dq, int64_t query) const { return dq + query * round_up(p_.shape.head_dim, 16); }

  HWY_INLINE void start(KeyBlock& block, Range keys) {
    block.keys = keys;
    block.packed = false;
    zero_row(block.dk, kBlockKeys * round_up(p_.shape.head_dim, 16));
    zero_row(block.dv, kBlockKeys * round_up(p_.shape.head_dim_v, 16));
  }

  HWY_INLINE void pack(KeyBlock& block, const BackwardTask& task, const Sequence& sequence) {
    const ptrdiff_t dim = p_.shape.head_dim, dim_v = p_.shape.head_dim_v, count = block.keys.end - block.keys.begin;
    const T* k = row_of<const T>(p_.k, sequence.batch, sequence.k_begin + block.keys.begin, task.group, task.head);
    const T* v = row_of<const T>(p_.v, sequence.batch, sequence.k_begin + block.keys.begin, task.group, task.head);
    block.packed = true;
    block.k = Gemm::pack_left(block.k_memory, k, p_.k.seq_stride, count, dim);
    block.kt = Gemm::pack_left_transposed(block.kt_memory, k, p_.k.seq_stride, count, dim);
    block.v = Gemm::pack_left(block.v_memory, v, p_.v.seq_stride, count, dim_v);
  }

  // Of columns_.
  HWY_INLINE void load_queries(Range rows, const BackwardTask& task, const Sequence& sequence) {
    const ptrdiff_t dim = p_.shape.head_dim, dim_v = p_.shape.head_dim_v;
    const Rows q = query_rows(p_.q, dim, rows, task, sequence);
    q_ = Gemm::pack_right(q_memory_, q.data, q.stride, columns_.padded, dim);
    qt_ = Gemm::pack_right_transposed(qt_memory_, q.data, q.stride, columns_.padded, dim);
    const Rows dout = query_rows(p_.dout, dim_v, rows, task, sequence);
    dout_ = Gemm::pack_right(dout_memory_, dout.data, dout.stride, columns_.padded, dim_v);
    doutt_ = Gemm::pack_right_transposed(doutt_memory_, dout.data, dout.stride, columns_.padded, dim_v);

    for (ptrdiff_t c = 0; c < columns_.padded; ++c) {
      delta_[c] = low_[c] = 0;
      lse_[c] = kInfinity<C>;  // exp(S - inf) = 0: unused columns, and rows that see no key
      if (c >= columns_.count) continue;
      const int64_t row = sequence.q_begin + rows.begin + c;
      const C lse = *row_of<const C>(p_.lse, sequence.batch, row, task.group, task.head);
      if (lse == -kInfinity<C>) continue;
      lse_[c] = lse;
      if (p_.lse_low.data && !(lse > -kLargeLse && lse < kLargeLse)) {
        low_[c] = kToExponent<C> * *row_of<const C>(p_.lse_low, sequence.batch, row, task.group, task.head);
      }
      delta_[c] =
          dot(dout.data + c * dout.stride, row_of<const T>(p_.out, sequence.batch, row, task.group, task.head), dim_v);
      if (p_.dlse.data) delta_[c] -= *row_of<const C>(p_.dlse, sequence.batch, row, task.group, task.head);
    }
    if (sums_sink_) add_to_dsink();
  }

  // dsink is -sum over the queries of exp(sink - lse) * delta. Those that are loaded, and others: a row that sees no
  // key has its sink for an lse, so it counts, too.
  HWY_INLINE void add_to_dsink() {
    const Tag<C> d;
    auto sum = hn::Zero(d);
    for (ptrdiff_t c = 0; c < columns_.padded; c += kLanes) {
      const auto above = hn::Sub(hn::Set(d, sink_), hn::Load(d, lse_ + c));
      const auto exponent = hn::MulSub(above, hn::Set(d, kToExponent<C>), hn::Load(d, low_ + c));
      sum = hn::MulAdd(power_vec<5>(exponent), hn::Load(d, delta_ + c), sum);
    }
    dsink_ -= static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  }
  HWY_NOINLINE void add_to_dsink(Range queries, const BackwardTask& task, const Sequence& sequence) {
    sums_sink_ = true;
    for (int64_t query = queries.begin; query < queries.end; query += width_) {
      const Range rows{query, min_of(query + width_, queries.end)};
      fill_columns(columns_, 0, rows.end - rows.begin, align_, rows, task.head);
      load_queries(rows, task, sequence);
    }
  }

  struct Rows {
    const T* data;
    ptrdiff_t stride;
  };

  // The block's rows where they lie, or in a copy that unused columns extend by zeros.
  HWY_INLINE Rows query_rows(const HeadsTensor& tensor, ptrdiff_t dim, Range rows, const BackwardTask& task,
                             const Sequence& sequence) {
    if (columns_.count == columns_.padded) {
      return {row_of<const T>(tensor, sequence.batch, sequence.q_begin + rows.begin, task.group, task.head),
              tensor.seq_stride};
    }
    T* const gathered = reinterpret_cast<T*>(staging_);
    gather_rows(gathered, dim, tensor, sequence, task.group, columns_);
    return {gathered, dim};
  }

  static HWY_INLINE C dot(const T* a, const T* b, ptrdiff_t count) {
    const Tag<C> d;
    auto sum = hn::Zero(d);
    ptrdiff_t i = 0;
    for (; i + kLanes <= count; i += kLanes) sum = hn::MulAdd(load_vec(a + i), load_vec(b + i), sum);
    C total = hn::GetLane(hn::SumOfLanes(d, sum));
    for (; i < count; ++i) total += static_cast<C>(to_compute(a[i])) * static_cast<C>(to_compute(b[i]));
    return total;
  }

  // Runs of the block's keys with the loaded queries.
  HWY_INLINE void add_block(const KeyBlock& block, const KeyRuns& runs, const BackwardTask& task, const Band& band,
                            const Sequence& sequence, C* dq) {
    const ptrdiff_t dim = p_.shape.head_dim, dim_v = p_.shape.head_dim_v, cols = columns_.padded;
    bool some_hidden = false;
    ptrdiff_t rows = 0;
    for (const KeyRun& run : runs) {
      const int64_t key = block.keys.begin + run.begin;
      const ptrdiff_t at = rows * cols;
      Gemm::multiply(scores_ + at, cols, block.k.at_row(run.begin), qt_, run.rows, cols, dim, false);
      Gemm::multiply(dprobs_ + at, cols, block.v.at_row(run.begin), doutt_, run.rows, cols, dim_v, false);
      some_hidden |= finish_scores<T>(scores_ + at, run.rows, p_, band, sequence, task.group, columns_, key, staging_,
                                      cap_derivative_ ? cap_derivative_ + at : nullptr);
      if (!run.whole) {
        rows_.hide(p_.blocks, columns_, scores_ + at, key, run.rows);
        some_hidden = true;
      }
      if (p_.dropout.p > 0) {
        fill_keep(keep_ + at, run.rows, p_.dropout, task.sequence, p_.shape.num_heads(),
                  task.group * p_.shape.heads_per_group, columns_, key);
      }
      rows += run.rows;
    }
    const Left probs = Gemm::probs_left(p_memory_, scores_, kBlockKeys, cols);
    const Left ds = Gemm::probs_left(ds_memory_, dprobs_, kBlockKeys, cols);
    const Right ds_right = Gemm::probs_right(dst_memory_, dprobs_, kBlockKeys, cols);
    if (cap_derivative_) {
      differentiate<true, true>(probs, ds, ds_right, rows);
    } else if (some_hidden) {
      differentiate<true, false>(probs, ds, ds_right, rows);
    } else {
      differentiate<false, false>(probs, ds, ds_right, rows);
    }
    rows = 0;
    for (const KeyRun& run : runs) {
      const int64_t key = block.keys.begin + run.begin;
      const C* const uncapped_ds = uncapped_ds_ + rows * cols;
      if (p_.dbias.data) store_dbias(uncapped_ds, run.rows, key, task, sequence);
      if (p_.dslopes.data) add_dslope(uncapped_ds, run.rows, key, sequence);
      Gemm::multiply(block.dv + run.begin * round_up(dim_v, 16), round_up(dim_v, 16), probs.at_row(rows), dout_,
                     run.rows, round_up(dim_v, 16), cols, true);
      Gemm::multiply(block.dk + run.begin * round_up(dim, 16), round_up(dim, 16), ds.at_row(rows), q_, run.rows,
                     round_up(dim, 16), cols, true);
      Gemm::multiply(dq, cols, block.kt.at_depth(run.begin), ds_right.at_depth(rows), dim, cols, run.rows, true);
      rows += run.rows;
    }
  }

  // scores -> P (with dropout), dprobs -> dS. Both are 0 where a score is hidden, whatever NaN stands beside it. dS of
  // the scores before their cap is what dQ and dK want, dS behind it what dbias and dslopes do.
  template <bool kSomeHidden, bool kCapped>
  HWY_INLINE void differentiate(const Left& probs, const Left& ds, const Right& ds_right, ptrdiff_t rows) {
    const Tag<C> d;
    const ptrdiff_t cols = columns_.padded;
    const auto scale = hn::Set(d, score_factor<C>(p_)), to_exponent = hn::Set(d, kToExponent<C>), zero = hn::Zero(d);
    const auto hidden = hn::Set(d, -kInfinity<C>);
    const auto kept = hn::Set(d, p_.dropout.p < 1 ? static_cast<C>(1 / (1 - p_.dropout.p)) : C(0));
    const bool keep_ds = wants_ds() && (kCapped || !Gemm::kProbsInPlace);
    for (ptrdiff_t c = 0; c < cols; c += kLanes) {
      const auto lse = hn::Load(d, lse_ + c), low = hn::Load(d, low_ + c), delta = hn::Load(d, delta_ + c);
      const auto one = [&](ptrdiff_t n, Vec<C>& p, Vec<C>& s) HWY_ATTR {
        const auto score = hn::LoadU(d, scores_ + n * cols + c), above = hn::MulSub(score, scale, lse);
        p = power_vec<Gemm::kExp2Degree>(hn::MulSub(above, to_exponent, low));
        auto dp = hn::LoadU(d, dprobs_ + n * cols + c);
        if (keep_) {
          const auto factor = hn::Mul(hn::LoadU(d, keep_ + n * cols + c), kept);
          s = hn::Mul(p, hn::Sub(hn::Mul(dp, factor), delta));
          p = hn::Mul(p, factor);
        } else {
          s = hn::Mul(p, hn::Sub(dp, delta));
        }
        if constexpr (kSomeHidden) {
          const auto masked = hn::Eq(score, hidden);
          p = hn::IfThenZeroElse(masked, p);
          s = hn::IfThenZeroElse(masked, s);
        }
        if (keep_ds) hn::StoreU(s, d, uncapped_ds_ + n * cols + c);
        if constexpr (kCapped) s = hn::Mul(s, hn::LoadU(d, cap_derivative_ + n * cols + c));
      };
      for (ptrdiff_t n = 0; n < rows; n += 2) {
        Vec<C> p0, s0, p1 = zero, s1 = zero;
        one(n, p0, s0);
        if (n + 1 < rows) one(n + 1, p1, s1);
        Gemm::template store_probs<true, false>(probs, {}, scores_, cols, n, c, p0, p1);
        Gemm::template store_probs<true, true>(ds, ds_right, dprobs_, cols, n, c, s0, s1);
      }
      for (ptrdiff_t n = round_up(rows, 2); n < round_up(rows, Gemm::kDepthAlign); n += 2) {
        Gemm::template store_probs<true, false>(probs, {}, scores_, cols, n, c, zero, zero);
        Gemm::template store_probs<true, true>(ds, ds_right, dprobs_, cols, n, c, zero, zero);
      }
    }
  }

  // ds: of the scores of keys [key, key + rows), behind their cap.
  HWY_INLINE void store_dbias(const C* ds, ptrdiff_t rows, int64_t key, const BackwardTask& task,
                              const Sequence& sequence) {
    const ptrdiff_t stride = round_up(rows, 16);
    transpose(ds, columns_.padded, staging_, stride, rows, columns_.padded);
    for (ptrdiff_t c = 0; c < columns_.count; ++c) {
      const C* from = staging_ + c * stride;
      if (p_.dbias_shared) {
        C* const sum =
            bias_row<C>(p_.dbias, sequence.index, columns_.origin + c, task.group, task.head) + key * p_.dbias.k_stride;
        for (ptrdiff_t n = 0; n < rows; ++n) sum[n * p_.dbias.k_stride] += from[n];
        continue;
      }
      T* to =
          bias_row<T>(p_.dbias, sequence.index, columns_.origin + c, task.group, task.head) + key * p_.dbias.k_stride;
      if (p_.dbias.k_stride == 1) {
        store_row(from, C(1), to, rows);
      } else {
        for (ptrdiff_t n = 0; n < rows; ++n) to[n * p_.dbias.k_stride] = from_compute<T>(from[n]);
      }
    }
  }

  HWY_INLINE void add_dslope(const C* all_ds, ptrdiff_t rows, int64_t key, const Sequence& sequence) {
    const Tag<C> d;
    const int64_t first = key - alibi_shift(p_.band, sequence) - columns_.origin;
    auto sum = hn::Zero(d);
    for (ptrdiff_t n = 0; n < rows; ++n) {
      const auto place = hn::Set(d, static_cast<C>(first + n));
      for (ptrdiff_t c = 0; c < columns_.padded; c += kLanes) {
        const auto ds = hn::LoadU(d, all_ds + n * columns_.padded + c);
        sum = hn::MulAdd(ds, alibi_distance(columns_, c, place), sum);
      }
    }
    dslope_ -= static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  }

  HWY_INLINE void finish(const KeyBlock& block, const BackwardTask& task, const Sequence& sequence) {
    const ptrdiff_t dim = p_.shape.head_dim, dim_v = p_.shape.head_dim_v;
    const C scale = static_cast<C>(p_.softmax_scale);
    for (int64_t key = block.keys.begin; key < block.keys.end; ++key) {
      const ptrdiff_t n = key - block.keys.begin;
      const int64_t row = sequence.k_begin + key;
      store_row(block.dk + n * round_up(dim, 16), scale, row_of<T>(p_.dk, sequence.batch, row, task.group, task.head),
                dim);
      store_row(block.dv + n * round_up(dim_v, 16), C(1), row_of<T>(p_.dv, sequence.batch, row, task.group, task.head),
                dim_v);
    }
  }

  HWY_INLINE void write_dq(C* dq, int64_t sequence_index, int64_t group, int64_t head) {
    const Sequence sequence = sequence_at(p_.shape, p_.seq, sequence_index);
    const ptrdiff_t dim = p_.shape.head_dim, stride = round_up(dim, 16);
    const C scale = static_cast<C>(p_.softmax_scale);
    for (int64_t query = 0; query < sequence.seqlen_q; query += width_) {
      const ptrdiff_t count = min_of(width_, sequence.seqlen_q - query), cols = round_up(count, align_);
      transpose(dq_block(dq, query), cols, staging_, stride, dim, cols);
      for (ptrdiff_t c = 0; c < count; ++c) {
        store_row(staging_ + c * stride, scale,
                  row_of<T>(p_.dq, sequence.batch, sequence.q_begin + query + c, group, head), dim);
      }
    }
  }

  const AttentionBwdParams& p_;
  C* shares_;
  ptrdiff_t width_, align_;  // of a block of columns; what their number is rounded up to
  ptrdiff_t num_key_blocks_;
  KeyBlock key_blocks_[kMaxKeyBlocks];
  char *q_memory_, *qt_memory_, *dout_memory_, *doutt_memory_;
  Right q_, qt_, dout_, doutt_;  // [queries, head_dim], [head_dim, queries], the same of dout
  char *p_memory_, *ds_memory_, *dst_memory_;
  C *scores_, *dprobs_;  // [128 keys, 64 queries]
  C *staging_, *keep_, *own_dq_;
  C *cap_derivative_, *uncapped_ds_;  // like dprobs_, which the second one is unless scores are capped
  bool sums_sink_;                    // of queries as they are loaded
  C sink_;
  double dslope_, dsink_;
  Columns<C> columns_;
  ColumnRows rows_;
  alignas(64) C delta_[kBlockColumns];
  alignas(64) C lse_[kBlockColumns];
  alignas(64) C low_[kBlockColumns];  // lse_low as an exponent
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
