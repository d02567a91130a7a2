// Parts that lie alike (alike_args.h): a warp works on several rows at once.
//
// 2^log_lanes (L) neighbouring lanes share a row, a lane reads 16 bytes of it at a time. A warp has kRows times 32 / L
// rows, which are neighbours; lane l finds out where row l is and what its parts weigh, and tells the others: places by
// shuffles, weights through shared memory. So what a row costs beside its elements is paid once, not once per lane.
#pragma once

#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/merge/alike_args.h"
#include "xformers/kernels/cuda/merge/merge_rows.cuh"

namespace xformers::cuda {

inline constexpr int kAlikeThreads = 128, kAlikeWarps = kAlikeThreads / 32;
inline constexpr int kRows = 2;  // of a lane

template <class Vector>
__device__ __forceinline__ void load_rows(Vector (&x)[kRows], const void* data, const uint32_t (&row)[kRows],
                                          uint32_t vector) {
#pragma unroll
  for (int u = 0; u < kRows; ++u) x[u] = (static_cast<const Vector*>(data) + vector)[row[u]];
}

// The rows of a warp, as a lane sees them.
class WarpRows {
  int log_lanes_;

 public:
  int count, num_parts;   // count: of rows
  uint32_t first;         // of them; some may be past the last
  uint32_t lane, in_row;  // in_row: the lane among those of its row
  bool has_own;           // whether this lane speaks for a row of its own, the lane-th
  MergeRow own;           // that row, or another
  uint32_t from[kRows];   // where the rows that it works on begin in a part

  __device__ __forceinline__ explicit WarpRows(const AlikeArgs& args)
      : log_lanes_(args.log_lanes),
        count(kRows << (5 - args.log_lanes)),
        num_parts(static_cast<int>(args.num_parts)),
        first((blockIdx.x * kAlikeWarps + threadIdx.x / 32) * static_cast<uint32_t>(count)),
        lane(threadIdx.x % 32),
        in_row(lane & (lanes() - 1)),
        has_own(lane < count && first + lane < args.rows),
        own(args.by, min(first + lane, args.rows - 1)) {
    tell(from, own.in(args.part_out));
  }
  __device__ __forceinline__ uint32_t lanes() const { return 1u << log_lanes_; }
  // The u-th row of this lane, in [0, count), and whether there is one.
  __device__ __forceinline__ int row(int u) const {
    return (u << (5 - log_lanes_)) + static_cast<int>(lane >> log_lanes_);
  }
  __device__ __forceinline__ bool has(int u, const AlikeArgs& args) const { return first + row(u) < args.rows; }

  // What lane row(u) knows.
  __device__ __forceinline__ void tell(uint32_t (&to)[kRows], uint32_t mine) const {
#pragma unroll
    for (int u = 0; u < kRows; ++u) to[u] = __shfl_sync(0xffffffffu, mine, row(u));
  }
  // Sums over the lanes of a row.
  template <int kValues>
  __device__ __forceinline__ void reduce(float (&x)[kValues]) const {
    for (uint32_t step = lanes() / 2; step > 0; step /= 2) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) x[i] += __shfl_xor_sync(0xffffffffu, x[i], step);
    }
  }
  // A vector of the lane's rows, of kBatch parts from `begin` on.
  template <int kBatch, class Vector>
  __device__ __forceinline__ void load_parts(Vector (&x)[kBatch][kRows], const AlikeArgs& args, int begin,
                                             uint32_t vector) const {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (begin + i < num_parts) load_rows(x[i], args.parts[begin + i].out, from, vector);
    }
  }
  // This warp's share of the block's memory, of `words` per row.
  __device__ __forceinline__ float* memory(int words) const {
    extern __shared__ float shared[];
    return shared + threadIdx.x / 32 * count * words;
  }
};

// Weights of the parts of all the warp's rows, [num_parts][rows]: exp(lse_i) over their sum. Lane l gets the merged lse
// of row l. kMost: of parts; 0: any number.
template <int kMost>
__device__ __forceinline__ float find_weights(const AlikeArgs& args, const WarpRows& warp, float* weights) {
  const int num_parts = warp.num_parts, rows = warp.count, lane = static_cast<int>(warp.lane);
  const uint32_t mine = warp.own.in(args.part_lse);
  const auto lse_of = [&](int part, uint32_t at) { return static_cast<const float*>(args.parts[part].lse)[at]; };
  float highest = -INFINITY, total = 0;
  if constexpr (kMost > 0) {
    if (lane < rows) {
      float x[kMost];
#pragma unroll
      for (int i = 0; i < kMost; ++i) x[i] = i < num_parts ? lse_of(i, mine) : -INFINITY;
#pragma unroll
      for (int i = 0; i < kMost; ++i) highest = max(highest, x[i]);
#pragma unroll
      for (int i = 0; i < kMost; ++i) total += x[i] = share(x[i], highest);
      const float inverse = 1 / total;
#pragma unroll
      for (int i = 0; i < kMost; ++i) {
        if (i < num_parts) weights[i * rows + lane] = weight_of(x[i], inverse);
      }
    }
  } else {  // lanes with the same row each take some of its parts, and all add them up, in order
    const int row = lane & (rows - 1), first = lane / rows, step = 32 / rows;
    const uint32_t at = __shfl_sync(0xffffffffu, mine, row);
#pragma unroll 4
    for (int i = first; i < num_parts; i += step) highest = max(highest, weights[i * rows + row] = lse_of(i, at));
    for (int other = rows; other < 32; other *= 2) highest = max(highest, __shfl_xor_sync(0xffffffffu, highest, other));
#pragma unroll 4
    for (int i = first; i < num_parts; i += step) weights[i * rows + row] = share(weights[i * rows + row], highest);
    __syncwarp();
#pragma unroll 4
    for (int i = 0; i < num_parts; ++i) total += weights[i * rows + row];
    const float inverse = 1 / total;
    __syncwarp();
    for (int i = first; i < num_parts; i += step) weights[i * rows + row] = weight_of(weights[i * rows + row], inverse);
  }
  __syncwarp();
  return merged_lse(highest, total);
}

// Calls fn with a value of the element type, which is not fp64.
template <class Fn>
void with_float(DType dtype, const Fn& fn) {
  with_element(dtype, [&]<class T>(T type) {
    if constexpr (!std::is_same_v<T, double>) fn(type);
  });
}

// `words`: of shared memory per row.
inline void launch_alike(void (*kernel)(AlikeArgs), const AlikeArgs& args, uint32_t words, cudaStream_t stream) {
  const uint32_t rows = kAlikeWarps * (uint32_t{kRows} << (5 - args.log_lanes));
  const size_t bytes = size_t{rows} * words * sizeof(float);
  const int64_t blocks = (args.rows + rows - 1) / rows;
  launch_with(kernel, blocks, 1, kAlikeThreads, static_cast<int>(bytes), stream, args);
}

}  // namespace xformers::cuda
