// How the threads of a block share rows. Plain C++.
#pragma once

#include <cstdint>

namespace xformers::cuda {

struct RowPlan {
  int group = 32;            // threads of one row: a power of two up to 32, or whole warps
  int threads = 256;         // of a block, a multiple of group
  bool in_registers = true;  // the row fits into group * items vectors
  constexpr int64_t rows_per_block() const { return threads / group; }
  constexpr int64_t blocks(int64_t rows) const { return (rows + rows_per_block() - 1) / rows_per_block(); }
};

// For rows of `vectors` accesses, of which a thread holds up to `items`; wider rows are looped over. Blocks have about
// `threads` threads, at most max_threads.
inline RowPlan plan_rows(int64_t vectors, int items, int threads, int max_threads) {
  const int64_t wanted = (vectors + items - 1) / items;
  if (wanted > max_threads) return {.group = max_threads, .threads = max_threads, .in_registers = false};
  int group = 1;
  if (wanted <= 32) {
    while (group < wanted) group *= 2;
  } else {
    group = static_cast<int>((wanted + 31) / 32 * 32);
  }
  return {.group = group, .threads = group >= threads ? group : threads / group * group};
}

}  // namespace xformers::cuda
