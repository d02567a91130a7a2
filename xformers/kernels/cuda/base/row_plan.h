// How the threads of a block share rows. Plain C++.
#pragma once

#include <cstdint>

namespace xformers::cuda {

struct RowPlan {
  int group = 32;            // threads of one row: a power of two, or whole warps that are the block
  int threads = 256;         // of a block, a multiple of group
  int shift = 5;             // thread >> shift is its group, the bits below its rank: log2(group), or 31 for the block
  int rows_per_block = 8;    // threads / group
  bool in_registers = true;  // the row fits into group * items vectors
  constexpr int64_t blocks(int64_t rows) const { return (rows + rows_per_block - 1) / rows_per_block; }
};

// For rows of `vectors` accesses, of which a thread holds up to `items`; wider rows are looped over. Blocks have about
// `threads` threads, at most max_threads; up to `together` threads share one with other groups.
inline RowPlan plan_rows(int64_t vectors, int items, int threads, int max_threads, int together = 32) {
  const int64_t wanted = (vectors + items - 1) / items;
  RowPlan plan;
  plan.in_registers = wanted <= max_threads;
  for (plan.shift = 0; plan.shift < 31 && (int64_t{1} << plan.shift) < wanted;) ++plan.shift;
  if (plan.shift < 31 && (1 << plan.shift) <= together) {
    plan.group = 1 << plan.shift;
    plan.threads = threads / plan.group * plan.group;
  } else {
    plan.group = plan.threads = plan.in_registers ? static_cast<int>((wanted + 31) / 32 * 32) : max_threads;
    plan.shift = 31;
  }
  plan.rows_per_block = plan.threads / plan.group;
  return plan;
}

}  // namespace xformers::cuda
