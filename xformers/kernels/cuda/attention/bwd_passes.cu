#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "xformers/kernels/cuda/attention/bwd_passes.h"
#include "xformers/kernels/cuda/attention/seqlen.cuh"
#include "xformers/kernels/cuda/base/cuda_check.h"
#include "xformers/kernels/cuda/base/elements.cuh"

namespace xformers::cuda {
namespace {

constexpr int kThreads = 256, kRowsPerBlock = 64;

template <class Fn>
void with_type(DType dtype, const Fn& fn) {
  switch (dtype) {
    case DType::kFloat32: return fn(float{});
    case DType::kFloat64: return fn(double{});
    case DType::kBFloat16: return fn(__nv_bfloat16{});
    case DType::kFloat16: return fn(__half{});
  }
}
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
  const int64_t statistics = (int64_t{batch} * heads + head_of_all) * p.shape.seqlen_q;
  const auto offset = [&](const auto& t) {
    return batch * t.batch_stride + group * t.group_stride + head * t.head_stride;
  };
  const T* const out = static_cast<const T*>(p.out.data) + offset(p.out);
  const T* const dout = static_cast<const T*>(p.dout.data) + offset(p.dout);
  const int lane = threadIdx.x % 32, in_row = lane % lanes, rows_at_once = kThreads / lanes;
#pragma unroll 4
  for (int local = threadIdx.x / lanes; local - lane / lanes < kRowsPerBlock; local += rows_at_once) {
    const int64_t row = first_row + local;
    const bool valid = row < p.shape.seqlen_q;
    C delta = 0;
    for (int64_t d = in_row * kVector; valid && d < p.shape.head_dim_v; d += lanes * kVector) {
      const auto a = *reinterpret_cast<const Vector<T, kVector>*>(out + row * p.out.seq_stride + d);
      const auto b = *reinterpret_cast<const Vector<T, kVector>*>(dout + row * p.dout.seq_stride + d);
#pragma unroll
      for (int i = 0; i < kVector; ++i) delta += widen(a.x[i]) * widen(b.x[i]);
    }
    for (int step = lanes / 2; step > 0; step /= 2) delta += __shfl_xor_sync(0xffffffffu, delta, step);
    if (in_row != 0 || !valid) continue;
    const C lse = static_cast<const C*>(p.lse.data)[offset(p.lse) + row];
    const bool sees_keys = lse != static_cast<C>(-INFINITY);
    if (p.dlse.data) delta -= static_cast<const C*>(p.dlse.data)[offset(p.dlse) + row];
    static_cast<C*>(args.lse)[statistics + row] =
        sees_keys ? lse * static_cast<C>(lse_factor) - static_cast<C>(args.lse_shift) : static_cast<C>(INFINITY);
    static_cast<C*>(args.delta)[statistics + row] = sees_keys ? delta * static_cast<C>(args.delta_factor) : 0;
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
  with_type(p.shape.dtype, [&](auto type) {
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
  with_type(shape.dtype, [&](auto type) {
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(ceil_div<int64_t>(count, kThreads), 1 << 20));
    clear_bias<decltype(type)><<<blocks, kThreads, 0, stream>>>(params.dbias, shape);
  });
  XFORMERS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace xformers::cuda
