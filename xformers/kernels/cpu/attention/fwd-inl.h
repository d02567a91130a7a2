// Forward attention of one task: online softmax over blocks of 128 keys, for up to 16 blocks of 64 columns ((head,
// query) pairs that share keys and values), so that a packed block of keys serves 1024 rows.
//
//   per block of keys that any column sees:  pack K [keys, head_dim] and V^T [head_dim_v, keys]
//     per block of columns:  S^T = K Q^T -> bias, mask -> column maxima -> P^T = exp(S^T - max) -> O^T += V^T P^T
//   at the end:  out = O / sum, lse + lse_low = max + ln(sum)
//
// The maximum in use is only raised when a score exceeds it by more than 2^8: until then the sums cannot overflow, and
// O needs no rescaling. Working memory: O^T and Q^T of the columns and one packed block of K and V.
#pragma once

#include "xformers/kernels/cpu/attention/block_walk-inl.h"
#include "xformers/kernels/cpu/attention/key_rows-inl.h"
#include "xformers/kernels/cpu/attention/merge.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

template <class Gemm>
class Forward {
  using T = typename Gemm::Element;
  using C = typename Gemm::Compute;
  static constexpr ptrdiff_t kLanes = lanes<C>();

  struct ColumnBlock {
    Columns<C> columns;
    ColumnRows rows;
    typename Gemm::Right q;  // [head_dim, columns]
    C* out;                  // [head_dim_v to 16, columns]
    alignas(64) C row_max[kBlockColumns];
    alignas(64) C row_sum[kBlockColumns];
    bool started;
  };

 public:
  using Compute = C;
  static HWY_INLINE void begin() { Gemm::begin(); }
  static HWY_INLINE void end() { Gemm::end(); }

  HWY_INLINE Forward(const AttentionFwdParams& params, ForwardPartials<C> partials)
      : p_(params), partials_(partials), key_rows_(params), width_(queries_in_one_block(params.blocks)) {}

  HWY_INLINE size_t lay_out(void* memory) {
    Arena arena(memory);
    const ptrdiff_t dim = p_.shape.head_dim, dim_v = p_.shape.head_dim_v;
    const ptrdiff_t num_blocks = column_blocks(p_) * (kBlockColumns / width_);
    blocks_ = arena.take<ColumnBlock>(num_blocks);
    q_memory_ = arena.take<char*>(num_blocks);
    out_memory_ = arena.take<C*>(num_blocks);
    for (ptrdiff_t b = 0; b < num_blocks; ++b) {
      char* const q = arena.take<char>(Gemm::right_size(dim, width_));
      C* const out = arena.take<C>(round_up(dim_v, 16) * width_);
      if (memory) q_memory_[b] = q, out_memory_[b] = out;
    }
    k_copy_ = arena.take<T>(key_rows_.copy_size(kBlockKeys, dim));
    v_copy_ = arena.take<T>(key_rows_.copy_size(kBlockKeys, dim_v));
    k_memory_ = arena.take<char>(Gemm::left_size(kBlockKeys, dim));
    v_memory_ = arena.take<char>(Gemm::left_size(dim_v, kBlockKeys));
    scores_ = arena.take<C>(kBlockKeys * kBlockColumns);
    probs_ = arena.take<char>(Gemm::probs_size(kBlockKeys, kBlockColumns));
    const ptrdiff_t rows = max_of(round_up(dim, 32), round_up(dim_v, 32)) * kBlockColumns;
    staging_ = arena.take<C>(max_of(rows, 2 * kBlockKeys * kBlockColumns));
    keep_ = p_.dropout.p > 0 ? arena.take<C>(kBlockKeys * kBlockColumns) : nullptr;
    return arena.bytes();
  }

  HWY_NOINLINE void run(const ForwardTask& task) {
    const Sequence sequence = sequence_at(p_.shape, p_.seq, task.sequence);
    const Band band(p_.band, sequence);
    const ptrdiff_t dim = p_.shape.head_dim, dim_v = p_.shape.head_dim_v;
    const ptrdiff_t total = (task.head_end - task.head_begin) * (task.queries.end - task.queries.begin);
    const ptrdiff_t num_blocks = (total + width_ - 1) / width_;
    for (ptrdiff_t b = 0; b < num_blocks; ++b) start(blocks_[b], b, total, task, sequence);

    for (int64_t key = task.keys.begin; key < task.keys.end; key += kBlockKeys) {
      const ptrdiff_t num_keys = min_of(kBlockKeys, task.keys.end - key);
      typename Gemm::Left k{}, v{};
      bool packed = false;
      for (ptrdiff_t b = 0; b < num_blocks; ++b) {
        ColumnBlock& block = blocks_[b];
        const Range seen = band.key_range(block.columns.queries);
        const ptrdiff_t begin = max_of(seen.begin - key, 0) / 32 * 32, end = min_of(seen.end - key, num_keys);
        const KeyRuns runs = block.rows.runs(p_.blocks, key, begin, end, Gemm::kDepthAlign);
        if (runs.count == 0) continue;
        if (!packed) {
          const Range keys{key, key + num_keys};
          const Rows<T> from_k = key_rows_.keys(sequence, keys, task.group_begin, task.head_begin, {k_copy_, dim});
          k = Gemm::pack_left(k_memory_, from_k.data, from_k.stride, num_keys, dim);
          const Rows<T> from_v = key_rows_.values(sequence, keys, task.group_begin, task.head_begin, {v_copy_, dim_v});
          v = Gemm::pack_left_transposed(v_memory_, from_v.data, from_v.stride, num_keys, dim_v);
          packed = true;
        }
        add_keys(block, task, band, sequence, k, v, key, runs);
      }
    }
    for (ptrdiff_t b = 0; b < num_blocks; ++b) finish(blocks_[b], task, sequence);
  }

 private:
  HWY_INLINE void start(ColumnBlock& block, ptrdiff_t index, ptrdiff_t total, const ForwardTask& task,
                        const Sequence& sequence) {
    const ptrdiff_t first = index * width_;
    fill_columns(block.columns, first, min_of(width_, total - first), 16, task.queries, task.head_begin);
    block.rows.start(p_.blocks, block.columns, sequence.batch, task.group_begin, task.keys.begin);
    T* const rows = reinterpret_cast<T*>(staging_);
    gather_rows(rows, p_.shape.head_dim, p_.q, sequence, task.group_begin, block.columns);
    block.q =
        Gemm::pack_right_transposed(q_memory_[index], rows, p_.shape.head_dim, block.columns.padded, p_.shape.head_dim);
    block.out = out_memory_[index];
    block.started = false;
    for (ptrdiff_t c = 0; c < kBlockColumns; ++c) {
      block.row_max[c] = -kInfinity<C>;
      block.row_sum[c] = 0;
    }
  }

  // Runs of the keys from `key` on, all of which some column of the block may see. k, v: those of the whole tile.
  HWY_INLINE void add_keys(ColumnBlock& block, const ForwardTask& task, const Band& band, const Sequence& sequence,
                           const typename Gemm::Left& k, const typename Gemm::Left& v, int64_t key,
                           const KeyRuns& runs) {
    const ptrdiff_t cols = block.columns.padded;
    ptrdiff_t rows = 0;
    for (const KeyRun& run : runs) {
      C* const scores = scores_ + rows * cols;
      const int64_t first = key + run.begin;
      Gemm::multiply(scores, cols, k.at_row(run.begin), block.q, run.rows, cols, p_.shape.head_dim, false);
      finish_scores<T>(scores, run.rows, p_, band, sequence, task.group_begin, block.columns, first, staging_);
      if (!run.whole) block.rows.hide(p_.blocks, block.columns, scores, first, run.rows);
      if (p_.dropout.p > 0) {
        fill_keep(keep_ + rows * cols, run.rows, p_.dropout, task.sequence, p_.shape.num_heads(),
                  task.group_begin * p_.shape.heads_per_group, block.columns, first);
      }
      rows += run.rows;
    }
    const auto probs = Gemm::probs_right(probs_, scores_, kBlockKeys, cols);
    softmax(block, probs, rows);
    rows = 0;
    for (const KeyRun& run : runs) {
      Gemm::multiply(block.out, cols, v.at_depth(run.begin), probs.at_depth(rows), p_.shape.head_dim_v, cols, run.rows,
                     block.started);
      block.started = true;
      rows += run.rows;
    }
  }

  // Scores to probabilities relative to the block's maximum; updates maxima and sums. A maximum ignores NaN, or is NaN
  // itself: the sum is NaN either way, and stays so.
  HWY_INLINE void softmax(ColumnBlock& block, const typename Gemm::Right& probs, ptrdiff_t rows) {
    const Tag<C> d;
    const ptrdiff_t cols = block.columns.padded;
    const C to_exponent = score_factor<C>(p_) * kToExponent<C>, highest = hwy::HighestValue<C>();
    const auto scale = hn::Set(d, to_exponent), zero = hn::Zero(d), lowest = hn::Set(d, -highest);
    const auto headroom = hn::Set(d, to_exponent < 8 / highest ? highest : C(8) / to_exponent);
    alignas(64) C rescale[kBlockColumns];
    bool any_rescale = false;
    for (ptrdiff_t c = 0; c < cols; c += kLanes) {
      const C* const scores = scores_ + c;
      auto max0 = hn::LoadU(d, scores), max1 = max0, max2 = max0, max3 = max0;
      ptrdiff_t n = 0;
      for (; n + 4 <= rows; n += 4) {
        max0 = hn::Max(max0, hn::LoadU(d, scores + n * cols));
        max1 = hn::Max(max1, hn::LoadU(d, scores + (n + 1) * cols));
        max2 = hn::Max(max2, hn::LoadU(d, scores + (n + 2) * cols));
        max3 = hn::Max(max3, hn::LoadU(d, scores + (n + 3) * cols));
      }
      for (; n < rows; ++n) max0 = hn::Max(max0, hn::LoadU(d, scores + n * cols));
      const auto seen_max = hn::Max(hn::Max(max0, max1), hn::Max(max2, max3));

      auto row_max = hn::Load(d, block.row_max + c), row_sum = hn::Load(d, block.row_sum + c);
      if (!hn::AllFalse(d, hn::Gt(seen_max, hn::Add(row_max, headroom)))) {
        const auto raised = hn::Max(row_max, seen_max);
        // Of a column that has seen no key yet, row_max is -inf: the factor is 0. Where raised is -inf too, likewise.
        const auto factor = power_vec<Gemm::kExp2Degree>(hn::Mul(hn::Sub(row_max, hn::Max(raised, lowest)), scale));
        row_sum = hn::Mul(row_sum, factor);
        hn::Store(factor, d, rescale + c);
        hn::Store(raised, d, block.row_max + c);
        row_max = raised;
        any_rescale = true;
      } else {
        hn::Store(hn::Set(d, C(1)), d, rescale + c);
      }
      // -inf as the maximum would make -inf minus itself: such columns are taken relative to 0.
      const auto base = hn::IfThenElse(hn::Lt(row_max, lowest), zero, row_max);
      const auto weight = [&](ptrdiff_t row) HWY_ATTR {
        return power_vec<Gemm::kExp2Degree>(hn::Mul(hn::Sub(hn::LoadU(d, scores + row * cols), base), scale));
      };

      auto sum0 = row_sum, sum1 = zero;
      for (n = 0; n + 2 <= rows; n += 2) {
        auto p0 = weight(n), p1 = weight(n + 1);
        sum0 = hn::Add(sum0, p0);
        sum1 = hn::Add(sum1, p1);
        if (keep_) {
          p0 = hn::Mul(p0, hn::LoadU(d, keep_ + n * cols + c));
          p1 = hn::Mul(p1, hn::LoadU(d, keep_ + (n + 1) * cols + c));
        }
        Gemm::template store_probs<false, true>({}, probs, scores_, cols, n, c, p0, p1);
      }
      if (n < rows) {
        auto p0 = weight(n);
        sum0 = hn::Add(sum0, p0);
        if (keep_) p0 = hn::Mul(p0, hn::LoadU(d, keep_ + n * cols + c));
        Gemm::template store_probs<false, true>({}, probs, scores_, cols, n, c, p0, zero);
        n += 2;
      }
      for (; n < round_up(rows, Gemm::kDepthAlign); n += 2) {
        Gemm::template store_probs<false, true>({}, probs, scores_, cols, n, c, zero, zero);
      }
      hn::Store(hn::Add(sum0, sum1), d, block.row_sum + c);
    }
    if (any_rescale && block.started) {
      for (ptrdiff_t r = 0; r < p_.shape.head_dim_v; ++r) {
        for (ptrdiff_t c = 0; c < cols; c += kLanes) {
          C* const at = block.out + r * cols + c;
          hn::StoreU(hn::Mul(hn::LoadU(d, at), hn::Load(d, rescale + c)), d, at);
        }
      }
    }
  }

  HWY_INLINE void finish(ColumnBlock& block, const ForwardTask& task, const Sequence& sequence) {
    const Tag<C> d;
    const Columns<C>& columns = block.columns;
    const ptrdiff_t cols = columns.padded, dim_v = p_.shape.head_dim_v, stride = round_up(dim_v, 16);
    alignas(64) C inverse[kBlockColumns], lse[kBlockColumns], lse_low[kBlockColumns];
    const C kept = p_.dropout.p > 0 && p_.dropout.p < 1 ? static_cast<C>(1 / (1 - p_.dropout.p)) : C(1);
    for (ptrdiff_t c = 0; c < cols; c += kLanes) {
      const auto sum = hn::Load(d, block.row_sum + c);
      hn::Store(hn::IfThenZeroElse(hn::Eq(sum, hn::Zero(d)), hn::Div(hn::Set(d, kept), sum)), d, inverse + c);
      const LogSum<C> total = log_sum<C>(hn::Load(d, block.row_max + c), score_factor<C>(p_), sum);
      hn::Store(total.lse, d, lse + c);
      hn::Store(total.low, d, lse_low + c);
    }
    // Of rows whose keys are split, the sink takes part when they are merged.
    if (p_.mods.sinks.data && task.partial_row < 0) add_sinks(columns, task, sequence, inverse, lse, lse_low);
    if (block.started) {
      transpose(block.out, cols, staging_, stride, dim_v, cols);
    } else {
      zero_row(staging_, columns.count * stride);
    }
    const int64_t num_queries = task.queries.end - task.queries.begin;
    for (ptrdiff_t c = 0; c < columns.count; ++c) {
      if (task.partial_row >= 0) {
        const int64_t row = task.partial_row + (columns.head[c] - task.head_begin) * num_queries + columns.query[c];
        store_row(staging_ + c * stride, inverse[c], partials_.out + row * dim_v, dim_v);
        partials_.row_max[row] = block.row_max[c];
        partials_.row_sum[row] = block.row_sum[c];
        continue;
      }
      const int64_t row = sequence.q_begin + columns.origin + columns.query[c];
      store_out<T>(p_, staging_ + c * stride, inverse[c], sequence.batch, row, task.group_begin, columns.head[c]);
      store_lse(p_, lse[c], lse_low[c], sequence.batch, row, task.group_begin, columns.head[c]);
    }
  }

  HWY_NOINLINE void add_sinks(const Columns<C>& columns, const ForwardTask& task, const Sequence& sequence, C* inverse,
                              C* lse, C* lse_low) const {
    const Tag<C> d;
    alignas(64) C sink[kBlockColumns];
    for (ptrdiff_t c = 0; c < columns.padded; ++c) {
      sink[c] = number_of<C>(p_.mods.sinks, sequence.index, task.group_begin, columns.head[c]);
    }
    for (ptrdiff_t c = 0; c < columns.padded; c += kLanes) {
      const LogSum<C> sum{hn::Load(d, lse + c), hn::Load(d, lse_low + c)};
      const SunkRows<C> rows = add_sink(sum, hn::Load(d, sink + c));
      hn::Store(rows.sum.lse, d, lse + c);
      hn::Store(rows.sum.low, d, lse_low + c);
      hn::Store(hn::Mul(hn::Load(d, inverse + c), rows.kept), d, inverse + c);
    }
  }

  const AttentionFwdParams& p_;
  ForwardPartials<C> partials_;
  KeyRows<T> key_rows_;
  ptrdiff_t width_;  // of a block of columns
  ColumnBlock* blocks_;
  char** q_memory_;
  C** out_memory_;
  T *k_copy_, *v_copy_;
  char *k_memory_, *v_memory_, *probs_;
  C *scores_, *staging_, *keep_;
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
