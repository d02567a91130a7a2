// Gradients of the normalisations in one pass over x and dout: as many blocks as the GPU holds take rows in turns, a
// group of threads per row. A thread always has the same columns, so their weights and their sums over rows stay in its
// registers; the next row is on its way while this one is reduced. Every block leaves one partial sum per column, which
// a second kernel adds in order.
#include <algorithm>

#include "xformers/kernels/cuda/base/column_sums.h"
#include "xformers/kernels/cuda/base/device.h"
#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/norm/norm_cuda.h"
#include "xformers/kernels/cuda/norm/row_ring.cuh"
#include "xformers/kernels/cuda/norm/wide_rows.cuh"
#include "xformers/kernels/params/checks.h"

namespace xformers::cuda {
namespace {

constexpr int kThreads = 256, kMaxThreads = kWideThreads, kThreadsPerMultiprocessor = 512;
constexpr int kRegisters = 65536 / kThreadsPerMultiprocessor;

// The weights of a thread's columns, which stay the same for all rows.
template <int kVec, int kItems, class C>
struct Weights {
  C values[kItems][kVec];

  __device__ __forceinline__ void fetch(const NormBwdParams& p, const ThreadGroup& group) {
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) values[item][i] = 1;
    }
    if (!p.weight) return;
    for_each_vector<kVec, kItems>(group, p.shape.width, true, [&](int item, int column) {
      load_as(p.weight, p.weight_dtype, column, values[item]);
    });
  }
  __device__ __forceinline__ void apply(int item, C (&g)[kVec]) const {
#pragma unroll
    for (int i = 0; i < kVec; ++i) g[i] *= values[item][i];
  }
};

template <class T, int kVec, int kItems, bool kLayer>
__global__ void __maxnreg__(kRegisters) norm_backward_rows(const __grid_constant__ NormBackwardArgs args) {
  using C = Compute<T>;
  using Reduce = GroupReduce<C, kLayer ? 4 : 2>;
  using Ring = RowRing<T, kVec, kItems>;
  constexpr int kSums = kLayer ? 2 : 1;
  __shared__ typename Reduce::Shared shared;
  extern __shared__ __align__(16) char smem[];
  wait_for_kernel_before();
  const NormBwdParams& p = args.p;
  const ThreadGroup group(args.plan);
  Reduce reduce(shared, group);
  const Ring ring(smem);
  const int width = static_cast<int>(p.shape.width);
  const int64_t rows_per_block = args.plan.rows_per_block, step = gridDim.x * rows_per_block;
  const auto fetch = [&](int slot, int64_t row) {
    ring.template fetch<kLayer>(slot, row_at<const T>(p.x, row), row_at<const T>(p.dout, row), group, width,
                                row < p.shape.rows);
  };
  int64_t row = blockIdx.x * rows_per_block + group.index;
#pragma unroll
  for (int ahead = 0; ahead < Ring::kRows; ++ahead) fetch(ahead, row + ahead * step);

  C sums[kSums][kItems][kVec] = {};  // of dweight and dbias
  Weights<kVec, kItems, C> weights;
  weights.fetch(p, group);
  int slot = 0;
  for (int64_t first = blockIdx.x * rows_per_block; first < p.shape.rows; first += step, row += step) {
    const bool valid = row < p.shape.rows;
    const auto for_each = [&](const auto& fn) { for_each_vector<kVec, kItems>(group, width, valid, fn); };
    const auto weigh = [&](int item, int, C(&g)[kVec]) { weights.apply(item, g); };
    ring.wait();
    RowShare<T, kVec, kItems> x, dout;
    ring.take(slot, x, dout);
    const C first_x = kLayer && valid ? ring.first(slot) : C{0};
    fetch(slot, row + Ring::kRows * step);
    const RowSums<C> sums_of_row = reduce_row<kVec, kLayer, C>(
        p, group, reduce, first_x, for_each,
        [&](int item, int column, C(&to)[kVec]) { numbers_of(x, item, column, to); },
        [&](int item, int column, C(&to)[kVec]) { numbers_of(dout, item, column, to); }, weigh);
    x.keep_packed();
    dout.keep_packed();
    for_each([&](int item, auto column) {
      C z[kVec], gradient[kVec], dx[kVec];
      numbers_of(x, item, column, z);
      numbers_of(dout, item, column, gradient);
#pragma unroll
      for (int i = 0; i < kVec; ++i) dx[i] = gradient[i];
      weigh(item, column, dx);
      gradient_of(sums_of_row, z, dx);
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        sums[0][item][i] += gradient[i] * z[i];
        if constexpr (kLayer) sums[1][item][i] += gradient[i];
      }
      if (p.dx.data) store(row_at<T>(p.dx, row) + column, pack<T>(dx));
    });
    slot = slot + 1 < Ring::kRows ? slot + 1 : 0;
  }

  if (!args.partials) return;
  // The groups of the block one after the other, through the memory of the rows; those of one warp first among
  // themselves.
  C* const columns = reinterpret_cast<C*>(smem);
  __syncthreads();
  const int teams = args.plan.threads / max(group.size, 32);
  const int team = group.size < 32 ? threadIdx.x / 32 : group.index;
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
    if (group.size < 32) {
#pragma unroll
      for (int item = 0; item < kItems; ++item) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          for (int lanes = group.size; lanes < 32; lanes *= 2)
            sums[s][item][i] += __shfl_xor_sync(0xffffffffu, sums[s][item][i], lanes);
        }
      }
    }
    const bool speaks = group.size >= 32 || threadIdx.x % 32 < group.size;
    C* const partial = static_cast<C*>(args.partials) + (blockIdx.x * int64_t{kSums} + s) * width;
    for (int turn = 0; turn < teams; ++turn) {
      if (turn == team && speaks) {
        for_each_vector<kVec, kItems>(group, width, true, [&](int item, int column) {
          C* const sum = sums[s][item];
          if (turn > 0) {
#pragma unroll
            for (int i = 0; i < kVec; ++i) sum[i] += columns[column + i];
          }
          // Whole accesses: sectors written piecemeal are slow.
          store((turn + 1 < teams ? columns : partial) + column, pack<C>(sums[s][item]));
        });
      }
      if (teams > 1) __syncthreads();
    }
  }
}

// Everything that the workspace's size and the launches have to agree on.
struct Layout {
  int vec = 1, items = 1;  // elements per access, accesses per thread and row
  RowPlan plan;
  int64_t blocks = 0;  // of rows
  int64_t parts = 0;   // partial sums per column
  int sums = 1;        // per column
  int64_t partial_bytes = 0, statistics_bytes = 0;
};

// Accesses per thread and row: what leaves room in registers for two rows of x and dout and the sums of all columns.
constexpr int items_of(int vec, bool layer) { return vec == 1 || (vec == 4 && !layer) ? 4 : 2; }
// Whether rows twice as wide fit too, without the next row.
constexpr bool has_long_rows(int vec, bool layer) { return vec == (layer ? 4 : 8); }

Layout layout_of(const NormBwdParams& p) {
  const DType dtype = p.shape.dtype;
  Layout layout;
  const bool vectors = rows_fit({&p.x, &p.dout, &p.dx}, p.shape.width, dtype) && is_aligned(p.weight);
  if (vectors && dtype != DType::kFloat64) layout.vec = 16 / static_cast<int>(size_of(dtype));
  const int64_t count = (p.shape.width + layout.vec - 1) / layout.vec;
  const bool layer = p.shape.kind == NormKind::kLayer;
  layout.items = items_of(layout.vec, layer);
  if (has_long_rows(layout.vec, layer) && count > layout.items * kMaxThreads) layout.items *= 2;
  layout.plan = plan_rows(count, layout.items, kThreads, kMaxThreads, kThreads / 2);
  const int64_t multiprocessors = current_device().multiprocessors;
  const bool sums_wanted = p.dweight || p.dbias;
  layout.sums = layer ? 2 : 1;
  if (layout.plan.in_registers) {
    const int64_t held = multiprocessors * std::max(1, kThreadsPerMultiprocessor / layout.plan.threads);
    layout.blocks = std::min(layout.plan.blocks(p.shape.rows), held);
    layout.parts = layout.blocks;
  } else {
    layout.blocks = std::min<int64_t>(p.shape.rows, 1 << 30);
    const int64_t across = (count + kColumnThreads - 1) / kColumnThreads;
    layout.parts = std::clamp<int64_t>(8 * multiprocessors / across, 1, std::min<int64_t>(p.shape.rows, 65535));
    layout.statistics_bytes = sums_wanted ? (p.shape.rows * 16 + 255) / 256 * 256 : 0;
  }
  const auto compute_size = static_cast<int64_t>(size_of(compute_dtype(dtype)));
  layout.partial_bytes = sums_wanted ? layout.parts * layout.sums * p.shape.width * compute_size : 0;
  return layout;
}

template <class T, int kVec, bool kLayer>
void run(const NormBwdParams& p, const Layout& layout, const Stream& where) {
  const auto stream = static_cast<cudaStream_t>(where.stream);
  NormBackwardArgs args{.p = p, .plan = layout.plan};
  char* workspace = static_cast<char*>(where.workspace);
  if (layout.statistics_bytes) args.statistics = workspace;
  if (layout.partial_bytes) args.partials = workspace + layout.statistics_bytes;
  const int threads = layout.plan.threads;
  if (layout.plan.in_registers) {
    constexpr int kItems = items_of(kVec, kLayer);
    auto kernel = norm_backward_rows<T, kVec, kItems, kLayer>;
    int bytes = RowRing<T, kVec, kItems>::kThreadBytes;
    if constexpr (has_long_rows(kVec, kLayer)) {
      if (layout.items > kItems) {
        kernel = norm_backward_rows<T, kVec, 2 * kItems, kLayer>;
        bytes = RowRing<T, kVec, 2 * kItems>::kThreadBytes;
      }
    }
    launch_after(kernel, layout.blocks, 1, threads, stream, args, bytes * threads);
  } else {
    launch<0>(norm_backward_wide_rows<T, kVec, kLayer>, layout.blocks, 1, threads, stream, args);
    if (args.partials) {
      const int64_t across = (p.shape.width / kVec + kColumnThreads - 1) / kColumnThreads;
      launch<0>(norm_backward_wide_columns<T, kVec, kLayer>, across, layout.parts, kColumnThreads, stream, args);
    }
  }
  if (!args.partials) return;
  const DType compute = compute_dtype(p.shape.dtype);
  if constexpr (kLayer) {
    column_sums(args.partials, compute, layout.parts, p.shape.width, p.dweight, p.dbias, p.weight_dtype, where);
  } else {
    column_sums(args.partials, compute, layout.parts, p.shape.width, p.dweight, p.weight_dtype, where);
  }
}

}  // namespace

size_t norm_backward_workspace(const NormBwdParams& p) {
  const Layout layout = layout_of(p);
  return static_cast<size_t>(layout.statistics_bytes + layout.partial_bytes);
}

void norm_backward(const NormBwdParams& p, const Stream& where) {
  check(p, WeightTypes::kAlsoOfRows);
  if (p.shape.width == 0) return;
  if (p.shape.rows == 0) {
    const size_t bytes = static_cast<size_t>(p.shape.width) * size_of(p.weight_dtype);
    for (void* gradient : {p.dweight, p.dbias}) {
      if (gradient) XFORMERS_CUDA_CHECK(cudaMemsetAsync(gradient, 0, bytes, static_cast<cudaStream_t>(where.stream)));
    }
    return;
  }
  const Layout layout = layout_of(p);
  const bool layer = p.shape.kind == NormKind::kLayer;
  with_vectors<false>(p.shape.dtype, layout.vec > 1, [&]<class T, int kVec>() {
    layer ? run<T, kVec, true>(p, layout, where) : run<T, kVec, false>(p, layout, where);
  });
}

}  // namespace xformers::cuda
