// The second pass where keys were split: out and lse out of the parts' results. A lane has four of 128 dims, blockIdx.y
// says which; a row has one warp, or eight, which share its parts and add up in shared memory.
#include "xformers/kernels/cuda/attention/scheduler.cuh"
#include "xformers/kernels/cuda/attention/sink.cuh"
#include "xformers/kernels/cuda/attention/split_merge.h"
#include "xformers/kernels/cuda/base/elements.cuh"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kDims = 128, kPartsPerLane = kMostSplits / 32;

__device__ float warp_max(float x) {
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, step));
  return x;
}
__device__ float warp_sum(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

template <class Out>
__device__ void store(Out* to, const float (&x)[4], int left, bool aligned) {
  if (aligned && left >= 4) {
    alignas(16) Out four[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = to_element<Out>(x[i]);
    if constexpr (sizeof(Out) == 4) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(four);
    } else {
      *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(four);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < left) to[i] = to_element<Out>(x[i]);
    }
  }
}

// x += share * part, of which `left` numbers exist.
__device__ __forceinline__ void add(float (&x)[4], float share, const float* part, int left, bool aligned) {
  float four[4] = {};
  if (aligned) {
    const float4 all = *reinterpret_cast<const float4*>(part);
    four[0] = all.x, four[1] = all.y, four[2] = all.z, four[3] = all.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = i < left ? part[i] : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] += share * four[i];
}

// What is left of a row; one that no packed sequence covers has no sink. All lanes of a warp.
__device__ RowEnd<float> finish(const AttentionFwdParams& p, int64_t batch, int64_t group, int64_t head, int64_t query,
                                float row_max, float row_sum) {
  int64_t index = batch;
  if (p.mods.sinks.data && p.seq.packed()) {
    index = sequence_of_query(p.seq, query);
    const Sequence sequence = sequence_at(p.shape, p.seq, index);
    if (query < sequence.q_begin || query >= sequence.q_begin + sequence.seqlen_q) {
      return {row_lse(row_max, row_sum), 1};
    }
  }
  return end_row(p, index, group, head, row_max, row_sum);
}

template <class Out, int kWarps>  // of a row
__global__ void __launch_bounds__(32 * (kWarps == 1 ? 4 : kWarps)) merge_parts(const __grid_constant__ FwdArgs args) {
  const AttentionFwdParams& p = args.p;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, dim_v = static_cast<int>(p.shape.head_dim_v);
  const int d = static_cast<int>(blockIdx.y) * kDims + lane * 4;
  const int64_t row = kWarps == 1 ? blockIdx.x * int64_t{4} + warp : blockIdx.x;  // [batch, groups, heads, seqlen_q]
  // Rows of partial results are less than 2^32.
  auto index = static_cast<uint32_t>(row);
  const auto split = [&](int64_t by) {
    const uint32_t quotient = index / static_cast<uint32_t>(by), rest = index - quotient * static_cast<uint32_t>(by);
    index = quotient;
    return rest;
  };
  const int64_t query = split(p.shape.seqlen_q), head = split(p.shape.heads_per_group),
                group = split(p.shape.num_groups), batch = index;
  wait_for_kernel_before();  // the parts
  if (row >= args.total_rows) return;

  // Every warp works out the shares for itself. Lane l has those of parts l, l + 32, ...
  PartStats part[kPartsPerLane];
  float most = -INFINITY, share[kPartsPerLane], sum = 0;
#pragma unroll
  for (int i = 0; i < kPartsPerLane; ++i) {
    const int s = i * 32 + lane;
    part[i] = s < args.num_splits ? args.stats_partial[s * args.total_rows + row] : PartStats{-INFINITY, 0};
    most = fmaxf(most, part[i].row_max);
  }
  most = warp_max(most);
#pragma unroll
  for (int i = 0; i < kPartsPerLane; ++i) sum += share[i] = share_of(part[i], most);
  sum = warp_sum(sum);

  float x[4] = {};
#pragma unroll
  for (int i = 0; i < kPartsPerLane; ++i) {
    const int parts = min(args.num_splits - i * 32, 32);
#pragma unroll 4
    for (int j = kWarps == 1 ? 0 : warp; j < parts; j += kWarps) {
      const float mine = __shfl_sync(kAll, share[i], j);
      if (mine == 0 || d >= dim_v) continue;  // what no block has written is not read
      add(x, mine, args.out_partial + ((i * 32 + j) * args.total_rows + row) * dim_v + d, dim_v - d, dim_v % 4 == 0);
    }
  }
  if constexpr (kWarps > 1) {
    __shared__ float4 sums[kWarps][32];
    sums[warp][lane] = {x[0], x[1], x[2], x[3]};
    __syncthreads();
    if (warp > 0) return;
#pragma unroll
    for (int w = 1; w < kWarps; ++w) {
      const float4 other = sums[w][lane];
      x[0] += other.x, x[1] += other.y, x[2] += other.z, x[3] += other.w;
    }
  }
  const auto [lse, kept] = finish(p, batch, group, head, query, most, sum);
  if (lane == 0 && blockIdx.y == 0) store_lse(p, lse, batch, group, head, query);
  if (d >= dim_v) return;
  const float inverse = inverse_of(sum) * kept;
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] *= inverse;
  const HeadsTensor& t = p.out;
  Out* const out = static_cast<Out*>(t.data) + batch * t.batch_stride + query * t.seq_stride + group * t.group_stride +
                   head * t.head_stride + d;
  store(out, x, dim_v - d, reinterpret_cast<uintptr_t>(out) % (4 * sizeof(Out)) == 0);
}

template <class Out>
void merge_as(const FwdArgs& args, bool few_rows, cudaStream_t stream) {
  const int64_t dims = (args.p.shape.head_dim_v + kDims - 1) / kDims;
  if (few_rows) {
    launch_after(merge_parts<Out, 8>, args.total_rows, dims, 32 * 8, stream, args);
  } else {
    launch_after(merge_parts<Out, 1>, (args.total_rows + 3) / 4, dims, 32 * 4, stream, args);
  }
}

__global__ void clear_stats(const __grid_constant__ FwdArgs args) {
  const int64_t count = args.num_splits * args.total_rows;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += gridDim.x * int64_t{blockDim.x}) {
    args.stats_partial[i] = {-INFINITY, 0};
  }
}

}  // namespace

void clear_partial_stats(const FwdArgs& args, cudaStream_t stream) {
  constexpr int64_t kThreads = 256, kMostBlocks = 1 << 20;
  const int64_t blocks = (args.num_splits * args.total_rows + kThreads - 1) / kThreads;
  launch<0>(clear_stats, blocks < kMostBlocks ? blocks : kMostBlocks, 1, kThreads, stream, args);
}

void merge_splits(const FwdArgs& args, bool few_rows, cudaStream_t stream) {
  if (args.p.wide_out) return merge_as<float>(args, few_rows, stream);
  if (args.p.shape.dtype == DType::kBFloat16) return merge_as<__nv_bfloat16>(args, few_rows, stream);
  merge_as<__half>(args, few_rows, stream);
}

}  // namespace xformers::cuda
