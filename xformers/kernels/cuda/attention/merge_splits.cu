// The second pass where keys were split: out and lse out of the parts' results, weighted by their shares of the sum. A
// warp has a row, a lane four elements of every 128.
#include "xformers/kernels/cuda/attention/passes.h"
#include "xformers/kernels/cuda/base/elements.cuh"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda {
namespace {

constexpr int kWarps = 4;
constexpr unsigned kAll = 0xffffffffu;

__device__ float warp_max(float x) {
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, step));
  return x;
}
__device__ float warp_sum(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

// A part that has seen no key counts for nothing, whatever the others are; NaN stays NaN.
__device__ float share_of(float lse, float largest) { return lse == -INFINITY ? 0.0f : __expf(lse - largest); }

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

template <class Out>
__global__ void __launch_bounds__(32 * kWarps) merge_parts(const __grid_constant__ FwdArgs args) {
  const AttentionFwdParams& p = args.p;
  const int lane = threadIdx.x % 32, dim_v = static_cast<int>(p.shape.head_dim_v);
  const int64_t row = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32;  // [batch, groups, heads, seqlen_q]
  wait_for_kernel_before();                                             // the parts
  if (row >= args.total_rows) return;
  const float* const lse = args.lse_partial + row;
  float largest = -INFINITY;
  for (int s = lane; s < args.num_splits; s += 32) largest = fmaxf(largest, lse[s * args.total_rows]);
  largest = warp_max(largest);
  float sum = 0;
  for (int s = lane; s < args.num_splits; s += 32) sum += share_of(lse[s * args.total_rows], largest);
  sum = warp_sum(sum);
  const float inverse = sum == 0 ? 0.0f : 1 / sum;

  int64_t index = row;
  const int64_t query = index % p.shape.seqlen_q;
  index /= p.shape.seqlen_q;
  const int64_t head = index % p.shape.heads_per_group;
  index /= p.shape.heads_per_group;
  const int64_t group = index % p.shape.num_groups, batch = index / p.shape.num_groups;
  if (lane == 0 && p.lse.data) {
    const RowTensor& t = p.lse;
    static_cast<float*>(t.data)[batch * t.batch_stride + group * t.group_stride + head * t.head_stride + query] =
        sum == 0 ? -INFINITY : largest + logf(sum);
  }
  const HeadsTensor& t = p.out;
  Out* const out = static_cast<Out*>(t.data) + batch * t.batch_stride + query * t.seq_stride + group * t.group_stride +
                   head * t.head_stride;
  const bool aligned = reinterpret_cast<uintptr_t>(out) % (4 * sizeof(Out)) == 0;
  for (int d = lane * 4; d < (dim_v + 127) / 128 * 128; d += 128) {
    float x[4] = {};
    for (int first = 0; first < args.num_splits; first += 32) {  // lane j knows the share of part first + j
      const int parts = min(args.num_splits - first, 32);
      const float mine = lane < parts ? share_of(lse[(first + lane) * args.total_rows], largest) : 0.0f;
#pragma unroll 4
      for (int j = 0; j < parts; ++j) {
        const float share = __shfl_sync(kAll, mine, j);
        const float* from = args.out_partial + ((first + j) * args.total_rows + row) * dim_v + d;
        float part[4] = {};
        if (share != 0 && d < dim_v) {  // what no block has written is not read
          if (dim_v % 4 == 0) {
            const float4 four = *reinterpret_cast<const float4*>(from);
            part[0] = four.x, part[1] = four.y, part[2] = four.z, part[3] = four.w;
          } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) part[i] = d + i < dim_v ? from[i] : 0.0f;
          }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] += share * part[i];
      }
    }
    if (d >= dim_v) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] *= inverse;
    store(out + d, x, dim_v - d, aligned);
  }
}

template <class Out>
void merge_as(const FwdArgs& args, cudaStream_t stream) {
  launch_after(merge_parts<Out>, (args.total_rows + kWarps - 1) / kWarps, 1, 32 * kWarps, stream, args);
}

}  // namespace

void merge_splits(const FwdArgs& args, cudaStream_t stream) {
  if (args.total_rows == 0) return;
  if (args.p.wide_out) return merge_as<float>(args, stream);
  if (args.p.shape.dtype == DType::kBFloat16) return merge_as<__nv_bfloat16>(args, stream);
  merge_as<__half>(args, stream);
}

}  // namespace xformers::cuda
