// Sums over the rows of a tall matrix, column by column: gradients of weights and biases. Rows are split into parts
// that depend on the shape alone; each part has one owner, which adds kSpan rows in the compute type and then, in
// double, to the part's total. So the result has the same bits for any number of threads and its error does not grow
// with the rows.
#pragma once

#include <type_traits>

#include "xformers/kernels/cpu/base/blocks.h"
#include "xformers/kernels/cpu/base/rows-inl.h"
#include "xformers/kernels/cpu/base/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// What one part adds to: kSums arrays of `width`.
template <class C, int kSums>
struct PartSums {
  static constexpr int64_t kSpan = 128;
  C* recent;      // [kSums, width]
  double* total;  // [kSums, width]
  int64_t width;
  int64_t end;  // of the part's rows
  int64_t pending = 0;

  HWY_INLINE C* array(int sum) const { return recent + sum * width; }
  HWY_NOINLINE void flush() {
    for (int64_t i = 0; i < kSums * width; ++i) {
      total[i] += static_cast<double>(recent[i]);
      recent[i] = 0;
    }
    pending = 0;
  }
  HWY_INLINE void rows_done(int64_t rows) {
    pending += rows;
    if (pending >= kSpan) flush();
  }
};

// results[s][i] = the sum of totals[part][s][i] over the parts, for each of `sums` results that isn't null.
template <class C>
HWY_NOINLINE void add_parts(const Threads& threads, const double* totals, int64_t parts, int64_t width, int sums,
                            C* const* results) {
  for_each_block(threads, width, parts * static_cast<int64_t>(sizeof(double)), [&](int64_t begin, int64_t end) {
    for (int s = 0; s < sums; ++s) {
      if (!results[s]) continue;
      for (int64_t i = begin; i < end; ++i) {
        double sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += totals[(part * sums + s) * width + i];
        results[s][i] = static_cast<C>(sum);
      }
    }
  });
}

// add_rows(row, part_sums, count) for all rows in [0, rows), count of them at once: a std::integral_constant, kAtOnce
// or, for what is left, 1. Then results[s][i] = sums (any of them may be null). What add_rows streams is finished here.
template <class C, int kSums, int kAtOnce, class AddRows>
void sum_columns(const Threads& threads, int64_t rows, int64_t width, C* const (&results)[kSums],
                 const AddRows& add_rows) {
  constexpr int64_t kMostParts = 64, kMostElements = int64_t{1} << 22;
  int64_t parts = rows / 32;
  if (parts > kMostParts) parts = kMostParts;
  if (width > 0 && parts > kMostElements / width) parts = kMostElements / width;
  if (parts < 1) parts = 1;
  const int64_t rows_per_part = (rows + parts - 1) / parts, size = kSums * width;

  Arena sizes;
  sizes.take<double>(parts * size);
  sizes.take<C>(parts * size);
  const ThreadScratch scratch(sizes.bytes());
  Arena arena(scratch.data());
  double* const totals = arena.take<double>(parts * size);
  C* const recents = arena.take<C>(parts * size);

  for_each_task(threads, parts, [&](int64_t part, int) {
    const int64_t end = min_of((part + 1) * rows_per_part, rows);
    PartSums<C, kSums> sums{recents + part * size, totals + part * size, width, end};
    for (int64_t i = 0; i < size; ++i) sums.recent[i] = 0, sums.total[i] = 0;
    int64_t row = part * rows_per_part;
    for (; row + kAtOnce <= end; row += kAtOnce) {
      add_rows(row, sums, std::integral_constant<int, kAtOnce>());
      sums.rows_done(kAtOnce);
    }
    for (; row < end; ++row) {
      add_rows(row, sums, std::integral_constant<int, 1>());
      sums.rows_done(1);
    }
    sums.flush();
    finish_streams();
  });
  add_parts(threads, totals, parts, width, kSums, results);
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
