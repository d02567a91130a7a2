#include <algorithm>
#include <climits>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "xformers/kernels/base/dispatch.h"
#include "xformers/kernels/cuda/attention/mask.cuh"
#include "xformers/kernels/cuda/attention/prepare_backward.h"
#include "xformers/kernels/cuda/attention/scheduler.cuh"
#include "xformers/kernels/cuda/attention/softmax.cuh"
#include "xformers/kernels/cuda/base/cuda_check.h"
#include "xformers/kernels/cuda/base/elements.cuh"

namespace xformers::cuda {
namespace {

constexpr int kThreads = 256, kRowsPerBlock = kStatisticsRows;

template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
__device__ Sum<T> widen(T x) {
  if constexpr (std::is_same_v<T, double>) {
    return x;
  } else {
    return static_cast<float>(x);
  }
}

template <class T, int kVector>
struct alignas(sizeof(T) * kVector) Vector {
  T x[kVector];
};

// (lse + lse_low) * factor, finite where lse is. An lse of +inf, beside which nothing is a number, becomes NaN.
template <class C>
__device__ C in_units(C lse, C lse_low, C factor) {
  if (lse == static_cast<C>(INFINITY)) return static_cast<C>(NAN);
  const C result = fma(lse, factor, lse_low * factor);
  return isinf(result) ? copysign(std::numeric_limits<C>::max(), result) : result;
}

// Where tiles span sequences: the queries that see a key, and the keys that a query sees, as rows of the tensors.
// Empty where a row belongs to no sequence.
__device__ Range queries_of(const AttentionBwdParams& p, int64_t key) {
  const int64_t index = last_at_or_before(p.seq.cu_seqlens_k, p.seq.num_sequences, key);
  if (index < 0) return {0, 0};
  const Sequence sequence = sequence_at(p.shape, p.seq, index);
  if (key >= sequence.k_begin + sequence.seqlen_k) return {0, 0};
  const int at = static_cast<int>(key - sequence.k_begin), first = static_cast<int>(sequence.q_begin);
  const Range queries = Band(p.band, sequence).query_range({at, at + 1});
  return {first + queries.begin, first + queries.end};
}
__device__ Range keys_of(const AttentionBwdParams& p, int64_t query) {
  const int64_t index = last_at_or_before(p.seq.cu_seqlens_q, p.seq.num_sequences, query);
  if (index < 0) return {0, 0};
  const Sequence sequence = sequence_at(p.shape, p.seq, index);
  if (query >= sequence.q_begin + sequence.seqlen_q) return {0, 0};
  const int at = static_cast<int>(query - sequence.q_begin), first = static_cast<int>(sequence.k_begin);
  const Range keys = Band(p.band, sequence).key_range({at, at + 1});
  return {first + keys.begin, first + keys.end};
}

// args.key_queries, args.block_tiles, and zeros in those blocks of dq_sum from `first_row` on that several tiles add to
// (or none).
__device__ void prepare_spans(const BwdArgs& args, unsigned head_of_all, int64_t first_row) {
  const AttentionBwdParams& p = args.p;
  for (int64_t key = blockIdx.x * int64_t{kThreads} + threadIdx.x; key < p.shape.seqlen_k;
       key += gridDim.x * int64_t{kThreads}) {
    args.key_queries[key] = queries_of(p, key);
  }
  __shared__ Range tiles[kRowsPerBlock / 32];  // of 32 queries
  if (threadIdx.x < kRowsPerBlock) {
    const int64_t row = first_row + threadIdx.x;
    const Range keys = row < p.shape.seqlen_q ? keys_of(p, row) : Range{0, 0};
    const int begin = __reduce_min_sync(kAllLanes, keys.empty() ? INT_MAX : keys.begin / args.block_n);
    const int end = __reduce_max_sync(kAllLanes, keys.empty() ? 0 : (keys.end - 1) / args.block_n + 1);
    if (threadIdx.x % 32 == 0) tiles[threadIdx.x / 32] = {begin, end};
  }
  __syncthreads();
  for (int first = 0; first < kRowsPerBlock; first += args.dq_rows) {
    const int64_t block = (first_row + first) / args.dq_rows;
    if (block >= args.query_blocks) break;
    Range all = tiles[first / 32];
    for (int i = first / 32 + 1; i < (first + args.dq_rows) / 32; ++i) {
      all = {min(all.begin, tiles[i].begin), max(all.end, tiles[i].end)};
    }
    if (head_of_all == 0 && threadIdx.x == 0) args.block_tiles[block] = all;
    if (one_tile(all)) continue;
    const int fours = args.dq_rows * args.head_dim / 4;
    float4* const to = reinterpret_cast<float4*>(args.dq_sum) + (head_of_all * args.query_blocks + block) * fours;
    for (int i = threadIdx.x; i < fours; i += kThreads) to[i] = {0, 0, 0, 0};
  }
}

// One block per (rows, head), heads fastest: neighbouring heads are neighbours in memory. `lanes` of a warp share a
// row.
template <class T, int kVector>
__global__ void __launch_bounds__(kThreads)
    prepare_rows(const __grid_constant__ BwdArgs args, double lse_factor, int lanes, uint4* zeros, int64_t zero_count) {
  using C = Sum<T>;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < zero_count; i += gridDim.x * int64_t{kThreads}) {
    zeros[i] = {0, 0, 0, 0};
  }
  const AttentionBwdParams& p = args.p;
  const auto heads = static_cast<unsigned>(p.shape.num_heads()),
             per_group = static_cast<unsigned>(p.shape.heads_per_group);
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(p.shape.seqlen_q, kRowsPerBlock));
  const unsigned head_of_all = blockIdx.x % heads, batch = blockIdx.x / heads / blocks;
  const unsigned group = head_of_all / per_group, head = head_of_all % per_group;
  const int64_t first_row = int64_t{blockIdx.x / heads % blocks} * kRowsPerBlock;
  if (args.key_queries) prepare_spans(args, head_of_all, first_row);
  const int64_t statistics = (int64_t{batch} * heads + head_of_all) * p.shape.seqlen_q;
  const auto offset = [&](const auto& t) {
    return batch * t.batch_stride + group * t.group_stride + head * t.head_stride;
  };
  const T* const out = static_cast<const T*>(p.out.data) + offset(p.out);
  const T* const dout = static_cast<const T*>(p.dout.data) + offset(p.dout);
  const int lane = threadIdx.x % 32, in_row = lane % lanes, rows_at_once = kThreads / lanes;
  constexpr bool kMayOverflow = std::is_same_v<T, __half>;
  float largest_lse = 0, largest_dout = 0;
#pragma unroll 4
  for (int local = threadIdx.x / lanes; local - lane / lanes < kRowsPerBlock; local += rows_at_once) {
    const int64_t row = first_row + local;
    const bool valid = row < p.shape.seqlen_q;
    C delta = 0, sum = 0;
    for (int64_t d = in_row * kVector; valid && d < p.shape.head_dim_v; d += lanes * kVector) {
      const auto a = *reinterpret_cast<const Vector<T, kVector>*>(out + row * p.out.seq_stride + d);
      const auto b = *reinterpret_cast<const Vector<T, kVector>*>(dout + row * p.dout.seq_stride + d);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        delta += widen(a.x[i]) * widen(b.x[i]);
        if constexpr (kMayOverflow) sum += fabsf(widen(b.x[i]));
      }
    }
    for (int step = lanes / 2; step > 0; step /= 2) {
      delta += __shfl_xor_sync(kAllLanes, delta, step);
      if constexpr (kMayOverflow) sum += __shfl_xor_sync(kAllLanes, sum, step);
    }
    if (in_row != 0 || !valid) continue;
    const C lse = static_cast<const C*>(p.lse.data)[offset(p.lse) + row];
    const C lse_low = p.lse_low.data ? static_cast<const C*>(p.lse_low.data)[offset(p.lse_low) + row] : C{0};
    const bool sees_keys = lse != static_cast<C>(-INFINITY);
    if (p.dlse.data) delta -= static_cast<const C*>(p.dlse.data)[offset(p.dlse) + row];
    static_cast<C*>(args.lse)[statistics + row] =
        sees_keys ? in_units(lse, lse_low, static_cast<C>(lse_factor)) - static_cast<C>(args.lse_shift)
                  : static_cast<C>(INFINITY);
    static_cast<C*>(args.delta)[statistics + row] = sees_keys ? delta * static_cast<C>(args.delta_factor) : 0;
    if (!sees_keys) continue;
    largest_lse = lse == lse ? fmaxf(largest_lse, fabsf(static_cast<float>(lse))) : INFINITY;
    if constexpr (kMayOverflow) {  // a row that is not finite has no gradients that could be in range
      const float size = sum + fabsf(delta);
      if (size < INFINITY) largest_dout = fmaxf(largest_dout, size);
    }
  }
  if (args.extremes) {
    __shared__ RowExtremes of_warps[kThreads / 32];
    largest_lse = max_of_warp(largest_lse);
    if constexpr (kMayOverflow) largest_dout = max_of_warp(largest_dout);
    if (lane == 0) of_warps[threadIdx.x / 32] = {largest_lse, largest_dout};
    __syncthreads();
    if (threadIdx.x == 0) {
      RowExtremes all = {};
      for (const RowExtremes& one : of_warps) all = {fmaxf(all.lse, one.lse), fmaxf(all.dout, one.dout)};
      args.extremes[(int64_t{batch} * heads + head_of_all) * blocks + first_row / kRowsPerBlock] = all;
    }
  }
}

// Rows of vectors that may be read at once. Strides of dimensions with one entry don't matter.
bool has_vectors(const HeadsTensor& t, const AttentionShape& shape, int64_t vector) {
  const auto fits = [&](int64_t size, int64_t stride) { return size <= 1 || stride % vector == 0; };
  return shape.head_dim_v % vector == 0 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0 &&
         fits(shape.batch, t.batch_stride) && fits(shape.seqlen_q, t.seq_stride) &&
         fits(shape.num_groups, t.group_stride) && fits(shape.heads_per_group, t.head_stride);
}

// Element `index` over [batch, groups, heads, seqlen_q, seqlen_k], the last fastest.
template <class T>
__global__ void clear_bias(ScoreBias bias, AttentionShape shape) {
  const int64_t count = shape.batch * shape.num_heads() * shape.seqlen_q * shape.seqlen_k;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < count; i += gridDim.x * int64_t{kThreads}) {
    int64_t rest = i / shape.seqlen_k;
    const int64_t query = rest % shape.seqlen_q;
    rest /= shape.seqlen_q;
    const int64_t head = rest % shape.heads_per_group;
    rest /= shape.heads_per_group;
    static_cast<T*>(
        bias.data)[rest / shape.num_groups * bias.batch_stride + rest % shape.num_groups * bias.group_stride +
                   head * bias.head_stride + query * bias.q_stride + i % shape.seqlen_k * bias.k_stride] =
        to_element<T>(0.0f);
  }
}

}  // namespace

void prepare_backward(const BwdArgs& args, double lse_factor, void* zeros, size_t zero_bytes, cudaStream_t stream) {
  const AttentionBwdParams& p = args.p;
  const int64_t blocks = ceil_div<int64_t>(p.shape.seqlen_q, kRowsPerBlock) * p.shape.num_heads() * p.shape.batch;
  if (blocks == 0) return;
  if (blocks > 0x7fffffff) {
    throw Error("cuda: " + std::to_string(blocks) +
                " blocks of queries, expected at most 2147483647.  Fix: cut the batch");
  }
  dispatch_dtype<__nv_bfloat16, __half>(p.shape.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kVector = 16 / sizeof(T);
    const bool vectors = has_vectors(p.out, p.shape, kVector) && has_vectors(p.dout, p.shape, kVector);
    int lanes = 1;
    while (lanes < 32 && lanes * (vectors ? kVector : 1) < p.shape.head_dim_v) lanes *= 2;
    const auto kernel = vectors ? prepare_rows<T, kVector> : prepare_rows<T, 1>;
    kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(args, lse_factor, lanes, static_cast<uint4*>(zeros),
                                                                   static_cast<int64_t>(zero_bytes / 16));
  });
  XFORMERS_CUDA_CHECK(cudaGetLastError());
}

void clear_bias_gradient(const AttentionBwdParams& params, cudaStream_t stream) {
  const AttentionShape& shape = params.shape;
  const int64_t count = shape.batch * shape.num_heads() * shape.seqlen_q * shape.seqlen_k;
  if (count == 0) return;
  const ScoreBias& to = params.dbias;
  if (to.k_stride == 1 && to.q_stride == shape.seqlen_k && to.batch_stride * shape.batch == count &&
      (shape.num_groups == 1 || to.group_stride * shape.num_groups == to.batch_stride) &&
      (shape.heads_per_group == 1 || to.head_stride == shape.seqlen_q * shape.seqlen_k)) {
    XFORMERS_CUDA_CHECK(cudaMemsetAsync(to.data, 0, static_cast<size_t>(count) * size_of(shape.dtype), stream));
    return;
  }
  dispatch_dtype<__nv_bfloat16, __half>(shape.dtype, [&](auto type) {
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(ceil_div<int64_t>(count, kThreads), 1 << 20));
    clear_bias<decltype(type)><<<blocks, kThreads, 0, stream>>>(params.dbias, shape);
  });
  XFORMERS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace xformers::cuda
