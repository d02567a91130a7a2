// Dot products at the places of a pattern. A warp takes 32 neighbouring places, of whatever rows: it finds the rows of
// the first and the last one by searching the offsets, each lane that of its own place between them. Teams of 8 lanes
// compute 4 dot products at a time, so that a warp has rows of b for 32 places on their way.
#include "xformers/kernels/base/divide.h"
#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/base/reduce.cuh"
#include "xformers/kernels/cuda/base/vector.cuh"
#include "xformers/kernels/cuda/csr/csr_cuda.h"
#include "xformers/kernels/cuda/csr/pattern.cuh"
#include "xformers/kernels/params/checks.h"

namespace xformers::cuda {
namespace {

constexpr int kDotThreads = 256, kDotWarps = kDotThreads / 32, kTeam = 8, kTeams = 32 / kTeam;

struct SddmmArgs {
  CsrSddmmParams p;
  Divisor<int64_t> chunks;  // of 32 places, of a batch element
  int64_t tasks;
};

template <class T, int kVec>
__global__ void __launch_bounds__(kDotThreads) csr_dot_products(const __grid_constant__ SddmmArgs args) {
  using C = Compute<T>;
  wait_for_kernel_before();
  const CsrSddmmParams& p = args.p;
  const CsrPattern& pattern = p.pattern;
  const int64_t task = int64_t{blockIdx.x} * kDotWarps + threadIdx.x / 32;
  if (task >= args.tasks) return;
  const auto [batch, chunk] = args.chunks.divide(task);
  const int lane = threadIdx.x % 32, team = lane / kTeam, rank = lane % kTeam;
  const int64_t first = chunk * 32, left = pattern.nnz - first;
  const int count = left < 32 ? static_cast<int>(left) : 32;
  const int64_t place = first + min(lane, count - 1);
  const auto start = [&](int row) { return pattern.row_offsets[row]; };
  const int low = last_row_by_warp(static_cast<int>(pattern.rows), first, start);
  const int high = last_row_by_warp(static_cast<int>(pattern.rows), first + count - 1, start);
  const int own_row = last_row_at(low, high + 1, place, start);
  const int own_column = inside(pattern.column_indices[place], pattern.columns);

  const T* const a = static_cast<const T*>(p.a.data) + batch * p.a.batch_stride;
  const T* const b = static_cast<const T*>(p.b.data) + batch * p.b.batch_stride;
  int rows[kTeam], columns[kTeam];  // of this team's dot products
#pragma unroll
  for (int i = 0; i < kTeam; ++i) {
    rows[i] = __shfl_sync(0xffffffffu, own_row, i * kTeams + team);
    columns[i] = __shfl_sync(0xffffffffu, own_column, i * kTeams + team);
  }
  C sums[kTeam] = {};
  for (int64_t k = rank * kVec; k < p.depth; k += kTeam * kVec) {
    Packed<T, kVec> right[kTeam];
#pragma unroll
    for (int i = 0; i < kTeam; ++i) right[i] = load<kVec>(b + columns[i] * p.b.row_stride + k);
#pragma unroll
    for (int i = 0; i < kTeam; ++i) {
      C x[kVec], y[kVec];
      unpack(load<kVec>(a + rows[i] * p.a.row_stride + k), x);
      unpack(right[i], y);
#pragma unroll
      for (int j = 0; j < kVec; ++j) sums[i] += x[j] * y[j];
    }
  }
  const C sum = warp_reduce_apart(sums, Sum(), lane, kTeam / 2);  // lane `rank` of a team has its dot product `rank`
  const int mine = rank * kTeams + team;
  if (mine < count) static_cast<T*>(p.out)[batch * pattern.nnz + first + mine] = to_element<T>(sum);
}

bool dot_operand_fits(const DenseMatrices& m, DType dtype) {
  return rows_are_aligned(m.data, m.row_stride, dtype) && rows_are_aligned(m.data, m.batch_stride, dtype);
}

}  // namespace

void csr_sddmm(const CsrSddmmParams& p, const Stream& where) {
  check(p);
  if (p.batch == 0 || p.pattern.nnz == 0 || p.pattern.rows == 0 || p.pattern.columns == 0) return;
  const int64_t chunks = (p.pattern.nnz + 31) / 32;
  const SddmmArgs args{.p = p, .chunks = Divisor<int64_t>(chunks), .tasks = p.batch * chunks};
  const bool vectors = p.depth * static_cast<int64_t>(size_of(p.dtype)) % 16 == 0 && dot_operand_fits(p.a, p.dtype) &&
                       dot_operand_fits(p.b, p.dtype);
  with_vectors(p.dtype, vectors, [&]<class T, int kVec>() {
    launch_after(csr_dot_products<T, kVec>, (args.tasks + kDotWarps - 1) / kDotWarps, 1, kDotThreads,
                 static_cast<cudaStream_t>(where.stream), args);
  });
}

}  // namespace xformers::cuda
