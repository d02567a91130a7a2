// Sparse rows. Products: a row of the pattern meets rows of a dense matrix, which lie anywhere and are asked for ahead
// of time. Compiled once per instruction set.
#include "xformers/kernels/cpu/base/blocks.h"
#include "xformers/kernels/cpu/base/exp-inl.h"
#include "xformers/kernels/cpu/base/scratch.h"
#include "xformers/kernels/cpu/csr/csr_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {
namespace {

template <class T>
const T* row_of(const DenseMatrices& m, int64_t batch, int64_t row) {
  return static_cast<const T*>(m.data) + batch * m.batch_stride + row * m.row_stride;
}

// The first row r in [0, rows] with r + row_offsets[r] >= position: rows and values weigh the same.
int64_t first_row_at(const CsrPattern& p, int64_t position) {
  int64_t low = 0, high = p.rows;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (middle + p.row_offsets[middle] >= position) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// fn(batch, first_row, last_row, worker) on runs of rows that have about as much to do as each other.
template <class Fn>
void for_each_rows(const Threads& threads, int64_t batch, const CsrPattern& p, int64_t bytes_per_value, const Fn& fn) {
  const int64_t work = p.rows + p.nnz;
  const int64_t run = max_of(block_bytes(batch * work * bytes_per_value) / bytes_per_value, 1);
  const int64_t runs = (work + run - 1) / run;
  for_each_task(threads, batch * runs, [&](int64_t task, int worker) {
    const int64_t b = task / runs, begin = task % runs * run;
    fn(b, first_row_at(p, begin), task % runs == runs - 1 ? p.rows : first_row_at(p, begin + run), worker);
  });
}

// ---- dot products ----
// out[j] = the dot product of a and row columns[j] of b, j < kCount.
template <int kCount, class T>
HWY_INLINE void dot_products(const T* HWY_RESTRICT a, const T* HWY_RESTRICT b, int64_t b_stride, const int32_t* columns,
                             int64_t depth, Compute<T>* HWY_RESTRICT out) {
  using C = Compute<T>;
  const T* rows[kCount];
  Vec<C> sums[kCount];
  for (int j = 0; j < kCount; ++j) {
    rows[j] = b + columns[j] * b_stride;
    sums[j] = hn::Zero(Tag<C>());
  }
  const auto add = [&](ptrdiff_t i, auto n) XFORMERS_INLINED {
    const auto left = load_n(a + i, n);
    for (int j = 0; j < kCount; ++j) sums[j] = hn::MulAdd(left, load_n(rows[j] + i, n), sums[j]);
  };
  ptrdiff_t i = 0;
  for (; i + lanes<C>() <= depth; i += lanes<C>()) add(i, Whole());
  if (i < depth) add(i, depth - i);
  for (int j = 0; j < kCount; ++j) out[j] = sum_lanes<C>(sums[j]);
}

template <class T>
void sddmm(const CsrSddmmParams& p, const Threads& threads) {
  using C = Compute<T>;
  constexpr int kAtOnce = 4, kSpan = 64;
  const int64_t bytes = max_of(p.depth, 1) * static_cast<int64_t>(sizeof(T));
  const CsrPattern& pattern = p.pattern;
  for_each_rows(threads, p.batch, pattern, bytes, [&](int64_t batch, int64_t first, int64_t last, int) {
    const T* const b = row_of<T>(p.b, batch, 0);
    T* const out = static_cast<T*>(p.out) + batch * pattern.nnz;
    for (int64_t row = first; row < last; ++row) {
      const T* const a = row_of<T>(p.a, batch, row);
      const int64_t end = pattern.row_offsets[row + 1];
      for (int64_t begin = pattern.row_offsets[row]; begin < end; begin += kSpan) {
        const int64_t count = min_of(kSpan, end - begin);
        const int32_t* const columns = pattern.column_indices + begin;
        C sums[kSpan];
        int64_t j = 0;
        for (; j + kAtOnce <= count; j += kAtOnce) {
          dot_products<kAtOnce>(a, b, p.b.row_stride, columns + j, p.depth, sums + j);
        }
        for (; j < count; ++j) dot_products<1>(a, b, p.b.row_stride, columns + j, p.depth, sums + j);
        for (j = 0; j < count; ++j) out[begin + j] = from_compute<T>(sums[j]);
      }
    }
  });
}

// ---- sums of rows ----
// total[x ...] += the sum over j of factors[j] * rows[columns[j]][x ...], kVecs vectors wide (the last one: n lanes).
// The sum of a span is a number of its own, so that the error does not grow with the row.
template <int kVecs, class T, class N>
HWY_INLINE void add_rows(const Compute<T>* HWY_RESTRICT factors, const int32_t* columns, int64_t count, const T* rows,
                         int64_t row_stride, N n, Vec<Compute<T>>* totals) {
  using C = Compute<T>;
  constexpr int64_t kAhead = 8;
  Vec<C> sums[kVecs];
  for (auto& sum : sums) sum = hn::Zero(Tag<C>());
  for (int64_t j = 0; j < count; ++j) {
    const T* const row = rows + columns[j] * row_stride;
    const T* const later = rows + columns[min_of(j + kAhead, count - 1)] * row_stride;
    for (int k = 0; k < kVecs; ++k) __builtin_prefetch(later + k * lanes<C>(), 0, 3);
    const auto factor = hn::Set(Tag<C>(), factors[j]);
    for (int k = 0; k + 1 < kVecs; ++k) sums[k] = hn::MulAdd(factor, load_n(row + k * lanes<C>(), Whole()), sums[k]);
    constexpr int kLast = kVecs - 1;
    sums[kLast] = hn::MulAdd(factor, load_n(row + kLast * lanes<C>(), n), sums[kLast]);
  }
  for (int k = 0; k < kVecs; ++k) totals[k] = hn::Add(totals[k], sums[k]);
}

// Factors of one span of a row, in the compute type.
template <class T>
HWY_INLINE void load_factors(const T* values, const int32_t* places, int64_t begin, int64_t count, Compute<T>* to) {
  if (!places) return convert_row(values + begin, to, count);
  for (int64_t j = 0; j < count; ++j) to[j] = static_cast<Compute<T>>(to_compute(values[places[begin + j]]));
}

constexpr int64_t kFactors = 256;

template <class T>
struct SparseRow {
  const T* values;
  const int32_t *places, *columns;
  int64_t begin, end;
};

// out[0 ... (kVecs - 1) vectors + n): columns of the result that fit into registers.
template <int kVecs, class T, class N>
HWY_INLINE void sum_columns_of_row(const SparseRow<T>& row, const T* dense, int64_t row_stride, N n, T* out) {
  using C = Compute<T>;
  Vec<C> totals[kVecs];
  for (auto& total : totals) total = hn::Zero(Tag<C>());
  C factors[kFactors];
  for (int64_t begin = row.begin; begin < row.end; begin += kFactors) {
    const int64_t count = min_of(kFactors, row.end - begin);
    load_factors(row.values, row.places, begin, count, factors);
    add_rows<kVecs>(factors, row.columns + begin, count, dense, row_stride, n, totals);
  }
  for (int k = 0; k + 1 < kVecs; ++k) store_n(totals[k], out + k * lanes<C>(), Whole());
  store_n(totals[kVecs - 1], out + (kVecs - 1) * lanes<C>(), n);
}

template <class T>
void spmm(const CsrSpmmParams& p, const Threads& threads) {
  using C = Compute<T>;
  constexpr int kVecs = 4;
  constexpr ptrdiff_t kWhole = kVecs * lanes<C>();
  const int64_t bytes = p.width * static_cast<int64_t>(sizeof(T));
  const CsrPattern& pattern = p.pattern;
  for_each_rows(threads, p.batch, pattern, bytes, [&](int64_t batch, int64_t first, int64_t last, int) {
    const T* const dense = row_of<T>(p.dense, batch, 0);
    const T* const values = static_cast<const T*>(p.values) + batch * p.values_stride;
    for (int64_t r = first; r < last; ++r) {
      const SparseRow<T> row{values, p.places, pattern.column_indices, pattern.row_offsets[r],
                             pattern.row_offsets[r + 1]};
      T* const out = static_cast<T*>(p.out.data) + batch * p.out.batch_stride + r * p.out.row_stride;
      ptrdiff_t x = 0;
      for (; x + kWhole <= p.width; x += kWhole) {
        sum_columns_of_row<kVecs>(row, dense + x, p.dense.row_stride, Whole(), out + x);
      }
      for (; x + lanes<C>() <= p.width; x += lanes<C>()) {
        sum_columns_of_row<1>(row, dense + x, p.dense.row_stride, Whole(), out + x);
      }
      if (x < p.width) sum_columns_of_row<1>(row, dense + x, p.dense.row_stride, p.width - x, out + x);
    }
  });
}

// ---- softmax ----
template <class T>
HWY_INLINE void softmax_row(const T* HWY_RESTRICT x, ptrdiff_t count, Compute<T>* HWY_RESTRICT powers,
                            T* HWY_RESTRICT out) {
  using C = Compute<T>;
  const Tag<C> d;
  const auto lowest = hn::Set(d, static_cast<C>(-__builtin_inf()));
  Vec<C> highest = lowest;
  ptrdiff_t i = 0;
  for (; i + lanes<C>() <= count; i += lanes<C>()) highest = hn::Max(highest, load_n(x + i, Whole()));
  if (i < count) {
    const auto some = hn::FirstN(d, static_cast<size_t>(count - i));
    highest = hn::Max(highest, hn::IfThenElse(some, load_n(x + i, count - i), lowest));
  }
  const auto top = hn::MaxOfLanes(d, highest);  // -inf: every power below is NaN, and so is the row
  double sum[1];
  sum_row<C>(count, sum, [&](ptrdiff_t j, auto n, Vec<C>* sums) {
    const auto power = only_n(exp_below_zero<T>(hn::Sub(load_n(x + j, n), top)), n);
    store_n(power, powers + j, n);
    sums[0] = hn::Add(sums[0], power);
  });
  const auto factor = hn::Set(d, static_cast<C>(1 / sum[0]));
  for_each_vec<C>(count, [&](ptrdiff_t j, auto n) { store_n(hn::Mul(load_n(powers + j, n), factor), out + j, n); });
}

template <class T>
HWY_INLINE void softmax_backward_row(const T* HWY_RESTRICT out, const T* HWY_RESTRICT dout, ptrdiff_t count,
                                     T* HWY_RESTRICT dx) {
  using C = Compute<T>;
  double sum[1];
  sum_row<C>(count, sum, [&](ptrdiff_t i, auto n, Vec<C>* sums) {
    sums[0] = hn::MulAdd(load_n(dout + i, n), load_n(out + i, n), sums[0]);
  });
  const auto total = hn::Set(Tag<C>(), static_cast<C>(sum[0]));
  for_each_vec<C>(count, [&](ptrdiff_t i, auto n) {
    store_n(hn::Mul(load_n(out + i, n), hn::Sub(load_n(dout + i, n), total)), dx + i, n);
  });
}

}  // namespace

void csr_sddmm(const CsrSddmmParams& p, const Threads& threads) {
  with_element(p.dtype, [&]<class T>(T) { sddmm<T>(p, threads); });
}

void csr_spmm(const CsrSpmmParams& p, const Threads& threads) {
  with_element(p.dtype, [&]<class T>(T) { spmm<T>(p, threads); });
}

void csr_softmax_forward(const CsrSoftmaxFwdParams& p, int64_t longest_row, const Threads& threads) {
  with_element(p.dtype, [&]<class T>(T) {
    using C = Compute<T>;
    Arena sizes;
    sizes.take<C>(longest_row);
    const size_t row_bytes = sizes.bytes();
    const ThreadScratch scratch(row_bytes * threads.num_threads);
    const CsrPattern& pattern = p.pattern;
    for_each_rows(threads, p.batch, pattern, 2 * sizeof(T),
                  [&](int64_t batch, int64_t first, int64_t last, int worker) {
                    C* const powers = reinterpret_cast<C*>(scratch.data() + worker * row_bytes);
                    for (int64_t row = first; row < last; ++row) {
                      const int64_t begin = pattern.row_offsets[row], at = batch * pattern.nnz + begin;
                      const int64_t count = pattern.row_offsets[row + 1] - begin;
                      if (count > 0) {
                        softmax_row(static_cast<const T*>(p.values) + at, count, powers, static_cast<T*>(p.out) + at);
                      }
                    }
                  });
  });
}

void csr_softmax_backward(const CsrSoftmaxBwdParams& p, const Threads& threads) {
  with_element(p.dtype, [&]<class T>(T) {
    const CsrPattern& pattern = p.pattern;
    for_each_rows(threads, p.batch, pattern, 3 * sizeof(T), [&](int64_t batch, int64_t first, int64_t last, int) {
      for (int64_t row = first; row < last; ++row) {
        const int64_t begin = pattern.row_offsets[row], at = batch * pattern.nnz + begin;
        const int64_t count = pattern.row_offsets[row + 1] - begin;
        if (count > 0) {
          softmax_backward_row(static_cast<const T*>(p.out) + at, static_cast<const T*>(p.dout) + at, count,
                               static_cast<T*>(p.dx) + at);
        }
      }
    });
  });
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
