// Softmax of rows that are known only on the device: of different lengths, in pieces, beginning anywhere. A family says
// what a row is:
//
//   struct Rows {
//     int64_t count;                                        // of rows
//     static constexpr bool kEmptyIsZero;                   // rows that see nothing are 0, else NaN
//     Row at(int64_t index) const;                          // index < count
//   };
//   row.vectors()                                           // of kVec numbers
//   row.scores(v, C (&s)[kVec])                             // forward: -inf where there is no number of the row
//   row.numbers(v, C (&y)[kVec], C (&dy)[kVec])             // backward: 0 where there is none
//   row.write(v, const C (&y)[kVec])                        // what there is of vector v
//
// A group of threads takes a row, kRaggedItems vectors of it per thread in registers. Rows that are longer than that
// are taken by the whole block, one after the other, and read twice.
#pragma once

#include <algorithm>
#include <bit>

#include "xformers/kernels/cuda/softmax/softmax_row.cuh"

namespace xformers::cuda {

constexpr int kRaggedThreads = 256;
constexpr int kRaggedItems = 4, kRaggedBackwardItems = 2;  // vectors per thread; backward: of both inputs

// For rows of about so many vectors, half of what fits, so that longer ones than most still do. most: threads of a
// group, of which more than a warp's 32 meet at barriers of the block.
inline RowPlan plan_ragged_rows(int64_t vectors, int items, int most) {
  const int64_t threads = std::clamp<int64_t>((2 * vectors + items - 1) / items, 2, most);
  RowPlan plan;
  plan.shift = std::bit_width(static_cast<uint64_t>(threads - 1));
  plan.group = 1 << plan.shift;
  plan.threads = kRaggedThreads;
  plan.rows_per_block = plan.threads / plan.group;
  return plan;
}

// fn(index) for the rows of this block that are too long for their groups, by all threads; wanted: whether this
// thread's row is one.
template <class Fn>
__device__ __forceinline__ void for_each_long_row(const RowPlan& plan, const ThreadGroup& group, bool wanted,
                                                  const Fn& fn) {
  __shared__ bool is_long[kRaggedThreads / 2];
  if (group.rank == 0) is_long[group.index] = wanted;
  if (!__syncthreads_or(wanted)) return;
  for (int i = 0; i < plan.rows_per_block; ++i) {
    if (is_long[i]) fn(int64_t{blockIdx.x} * plan.rows_per_block + i);
    __syncthreads();
  }
}

__device__ __forceinline__ ThreadGroup whole_block() {
  return ThreadGroup(RowPlan{.group = kRaggedThreads, .threads = kRaggedThreads, .shift = 31, .rows_per_block = 1});
}

template <class T, int kVec, class Rows>
__device__ __forceinline__ void softmax_of_ragged_rows(const Rows& rows, const RowPlan& plan) {
  using C = Compute<T>;
  using Merge = SoftmaxMerge<T>;
  __shared__ typename Merge::Shared shared;
  // Powers are relative to the part that they come from.
  const auto factor_of = [](const SoftmaxPart<T>& part, const SoftmaxPart<T>& all) {
    return Rows::kEmptyIsZero && all.sum == C{0} ? C{0} : part.relative_to(all.top) / all.sum;
  };
  const ThreadGroup group(plan);
  const int64_t index = int64_t{blockIdx.x} * plan.rows_per_block + group.index;
  const bool valid = index < rows.count;
  const auto row = rows.at(valid ? index : 0);
  const bool too_long = valid && row.vectors() > kRaggedItems * group.size;
  const int vectors = valid && !too_long ? row.vectors() : 0;
  C s[kRaggedItems][kVec];  // scores, then powers
  SoftmaxPart<T> part;
#pragma unroll
  for (int item = 0; item < kRaggedItems; ++item) {
    const int v = item * group.size + group.rank;
    if (v < vectors) {
      row.scores(v, s[item]);
    } else {
#pragma unroll
      for (int i = 0; i < kVec; ++i) s[item][i] = lowest<C>();
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) part.top = max(part.top, s[item][i]);
  }
  const C base = part.base();
#pragma unroll
  for (int item = 0; item < kRaggedItems; ++item) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) part.sum += s[item][i] = exp_as<T>(s[item][i] - base);
  }
  const C factor = factor_of(part, Merge(shared, group)(part));
#pragma unroll
  for (int item = 0; item < kRaggedItems; ++item) {
    const int v = item * group.size + group.rank;
    if (v >= vectors) continue;
#pragma unroll
    for (int i = 0; i < kVec; ++i) s[item][i] *= factor;
    row.write(v, s[item]);
  }

  for_each_long_row(plan, group, too_long, [&](int64_t long_index) {
    const auto long_row = rows.at(long_index);
    SoftmaxPart<T> own;  // the sum always relative to the maximum so far
    for (int v = threadIdx.x; v < long_row.vectors(); v += kRaggedThreads) {
      C x[kVec];
      long_row.scores(v, x);
      SoftmaxPart<T> longer = own;
#pragma unroll
      for (int i = 0; i < kVec; ++i) longer.top = max(longer.top, x[i]);
      longer.sum *= own.relative_to(longer.top);
      const C from = longer.base();
#pragma unroll
      for (int i = 0; i < kVec; ++i) longer.sum += exp_as<T>(x[i] - from);
      own = longer;
    }
    SoftmaxPart<T> all = Merge(shared, whole_block())(own);
    const C top = all.base(), of_all = factor_of(all, all);
    for (int v = threadIdx.x; v < long_row.vectors(); v += kRaggedThreads) {
      C x[kVec];
      long_row.scores(v, x);
#pragma unroll
      for (int i = 0; i < kVec; ++i) x[i] = exp_as<T>(x[i] - top) * of_all;
      long_row.write(v, x);
    }
  });
}

// dx = scale * y * (dy - sum(dy * y)).
template <class T, int kVec, class Rows>
__device__ __forceinline__ void softmax_gradients_of_ragged_rows(const Rows& rows, const RowPlan& plan,
                                                                 Compute<T> scale) {
  using C = Compute<T>;
  using Reduce = GroupReduce<C, 1>;
  __shared__ typename Reduce::Shared shared;
  const ThreadGroup group(plan);
  const int64_t index = int64_t{blockIdx.x} * plan.rows_per_block + group.index;
  const bool valid = index < rows.count;
  const auto row = rows.at(valid ? index : 0);
  const bool too_long = valid && row.vectors() > kRaggedBackwardItems * group.size;
  const int vectors = valid && !too_long ? row.vectors() : 0;
  C y[kRaggedBackwardItems][kVec], dy[kRaggedBackwardItems][kVec], sum[1] = {0};
#pragma unroll
  for (int item = 0; item < kRaggedBackwardItems; ++item) {
    const int v = item * group.size + group.rank;
    if (v >= vectors) continue;
    row.numbers(v, y[item], dy[item]);
#pragma unroll
    for (int i = 0; i < kVec; ++i) sum[0] += dy[item][i] * y[item][i];
  }
  Reduce(shared, group)(sum, Sum());
#pragma unroll
  for (int item = 0; item < kRaggedBackwardItems; ++item) {
    const int v = item * group.size + group.rank;
    if (v >= vectors) continue;
#pragma unroll
    for (int i = 0; i < kVec; ++i) dy[item][i] = scale * (y[item][i] * (dy[item][i] - sum[0]));
    row.write(v, dy[item]);
  }

  Reduce whole(shared, whole_block());
  for_each_long_row(plan, group, too_long, [&](int64_t long_index) {
    const auto long_row = rows.at(long_index);
    C a[kVec], b[kVec], total[1] = {0};
    for (int v = threadIdx.x; v < long_row.vectors(); v += kRaggedThreads) {
      long_row.numbers(v, a, b);
#pragma unroll
      for (int i = 0; i < kVec; ++i) total[0] += b[i] * a[i];
    }
    whole(total, Sum());
    for (int v = threadIdx.x; v < long_row.vectors(); v += kRaggedThreads) {
      long_row.numbers(v, a, b);
#pragma unroll
      for (int i = 0; i < kVec; ++i) b[i] = scale * (a[i] * (b[i] - total[0]));
      long_row.write(v, b);
    }
  });
}

}  // namespace xformers::cuda
