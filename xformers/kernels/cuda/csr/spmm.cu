// A sparse matrix times a dense one. A warp takes a row of the pattern and a strip of columns of the result: teams of 8
// lanes add up 4 rows of the dense matrix at a time, 32 of which are on their way. Rows with many values are taken by
// all warps of the block, one after the other. Sums are added up in a fixed order.
#include "xformers/kernels/base/divide.h"
#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/base/vector.cuh"
#include "xformers/kernels/cuda/csr/csr_cuda.h"
#include "xformers/kernels/cuda/csr/pattern.cuh"
#include "xformers/kernels/params/checks.h"

namespace xformers::cuda {
namespace {

constexpr int kSumThreads = 256, kSumWarps = kSumThreads / 32, kTeam = 8, kTeams = 32 / kTeam;
constexpr int kLongRow = 1024;  // values, from which on a row is the block's

struct SpmmArgs {
  CsrSpmmParams p;
  Divisor<int64_t> groups, strips;  // groups of kSumWarps rows, of a batch element; strips of columns
};

// One strip of one batch element: lane `rank` of every team has the vectors rank, rank + 8, ... of it.
template <class T, int kVec, int kItems>
struct SpmmStrip {
  using C = Compute<T>;
  const CsrSpmmParams& p;
  const T *values, *dense;
  int64_t first_column;
  int lane = threadIdx.x % 32, team = lane / kTeam, rank = lane % kTeam;

  __device__ __forceinline__ int64_t column(int item) const { return first_column + (item * kTeam + rank) * kVec; }

  template <bool kWhole>
  __device__ __forceinline__ void add_span(const Places& places, int base, C (&sums)[kItems][kVec]) const {
    const int place = base + lane;
    int own_column = 0;
    C own_factor = 0;
    if (kWhole || place < places.end) {
      own_column = inside(p.pattern.column_indices[place], p.pattern.columns);
      own_factor = to_compute(values[p.places ? inside(p.places[place], p.pattern.nnz) : place]);
    }
    constexpr int kAhead = 8 / kItems;  // rows of the dense matrix that a team has on their way
#pragma unroll
    for (int first = 0; first < 32 / kTeams; first += kAhead) {
      Packed<T, kVec> x[kAhead][kItems];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int other = (first + i) * kTeams + team;
        const T* const row = dense + __shfl_sync(0xffffffffu, own_column, other) * p.dense.row_stride;
#pragma unroll
        for (int item = 0; item < kItems; ++item) {
          if ((kWhole || base + other < places.end) && column(item) < p.width)
            x[i][item] = load<kVec>(row + column(item));
        }
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int other = (first + i) * kTeams + team;
        const C factor = __shfl_sync(0xffffffffu, own_factor, other);
        if (!kWhole && base + other >= places.end) continue;
#pragma unroll
        for (int item = 0; item < kItems; ++item) {
          C numbers[kVec];
          unpack(x[i][item], numbers);
#pragma unroll
          for (int j = 0; j < kVec; ++j) sums[item][j] += factor * numbers[j];
        }
      }
    }
  }

  // sums += the spans first, first + step, ... of 32 places; at the end every team has the sums of all.
  __device__ __forceinline__ void add(const Places& places, int first, int step, C (&sums)[kItems][kVec]) const {
    int base = places.begin + first * 32;
    for (; places.end - base >= 32; base += step * 32) add_span<true>(places, base, sums);
    if (base < places.end) add_span<false>(places, base, sums);
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
#pragma unroll
        for (int other = kTeam; other < 32; other *= 2) {
          sums[item][j] += __shfl_xor_sync(0xffffffffu, sums[item][j], other);
        }
      }
    }
  }

  __device__ __forceinline__ void write(int64_t batch, int64_t row, const C (&sums)[kItems][kVec]) const {
    T* const out = static_cast<T*>(p.out.data) + batch * p.out.batch_stride + row * p.out.row_stride;
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      if (team == 0 && column(item) < p.width) store(out + column(item), pack<T>(sums[item]));
    }
  }
};

template <class T, int kVec, int kItems>
__global__ void __maxnreg__(128) csr_row_sums(const __grid_constant__ SpmmArgs args) {
  using C = Compute<T>;
  __shared__ C partial[kSumWarps][kTeam][kItems * kVec];
  __shared__ bool is_long[kSumWarps];
  wait_for_kernel_before();
  const CsrSpmmParams& p = args.p;
  const auto [task, strip_index] = args.strips.divide(blockIdx.x);
  const auto [batch, group] = args.groups.divide(task);
  const SpmmStrip<T, kVec, kItems> strip{.p = p,
                                         .values = static_cast<const T*>(p.values) + batch * p.values_stride,
                                         .dense = static_cast<const T*>(p.dense.data) + batch * p.dense.batch_stride,
                                         .first_column = strip_index * kTeam * kItems * kVec};
  const int warp = threadIdx.x / 32;
  const int64_t first_row = group * kSumWarps, own_row = first_row + warp;
  const auto places_of = [&](int64_t row) {
    const Places places = places_of_row(p.pattern.row_offsets, row, p.pattern.nnz);
    return p.pattern.columns > 0 ? places : Places{0, 0};
  };
  const Places own = own_row < p.pattern.rows ? places_of(own_row) : Places{0, 0};
  const bool deferred = own.count() >= kLongRow;
  if (strip.lane == 0) is_long[warp] = deferred;
  if (own_row < p.pattern.rows && !deferred) {
    C sums[kItems][kVec] = {};
    strip.add(own, 0, 1, sums);
    strip.write(batch, own_row, sums);
  }
  if (!__syncthreads_or(deferred)) return;
  for (int i = 0; i < kSumWarps; ++i) {
    if (!is_long[i]) continue;
    C sums[kItems][kVec] = {};
    strip.add(places_of(first_row + i), warp, kSumWarps, sums);
    if (strip.team == 0) {
#pragma unroll
      for (int j = 0; j < kItems * kVec; ++j) partial[warp][strip.rank][j] = sums[j / kVec][j % kVec];
    }
    __syncthreads();
    if (warp == 0) {
      for (int other = 1; other < kSumWarps; ++other) {
#pragma unroll
        for (int j = 0; j < kItems * kVec; ++j) sums[j / kVec][j % kVec] += partial[other][strip.rank][j];
      }
      strip.write(batch, first_row + i, sums);
    }
    __syncthreads();
  }
}

template <class T, int kVec, int kItems>
void launch_spmm(const CsrSpmmParams& p, const Stream& where) {
  constexpr int64_t kStrip = kTeam * kItems * kVec;
  const int64_t groups = (p.pattern.rows + kSumWarps - 1) / kSumWarps, strips = (p.width + kStrip - 1) / kStrip;
  launch_after(csr_row_sums<T, kVec, kItems>, p.batch * groups * strips, 1, kSumThreads,
               static_cast<cudaStream_t>(where.stream),
               SpmmArgs{.p = p, .groups = Divisor<int64_t>(groups), .strips = Divisor<int64_t>(strips)});
}

bool sum_operand_fits(const DenseMatrices& m, DType dtype) {
  return rows_are_aligned(m.data, m.row_stride, dtype) && rows_are_aligned(m.data, m.batch_stride, dtype);
}

}  // namespace

void csr_spmm(const CsrSpmmParams& p, const Stream& where) {
  check(p);
  if (p.batch == 0 || p.pattern.rows == 0 || p.width == 0) return;
  const bool vectors = p.width * static_cast<int64_t>(size_of(p.dtype)) % 16 == 0 &&
                       sum_operand_fits(p.dense, p.dtype) && sum_operand_fits(p.out, p.dtype);
  with_vectors(p.dtype, vectors, [&]<class T, int kVec>() {
    if constexpr (kVec > 1) {
      if (p.width > kTeam * kVec) return launch_spmm<T, kVec, 2>(p, where);
    }
    launch_spmm<T, kVec, 1>(p, where);
  });
}

}  // namespace xformers::cuda
