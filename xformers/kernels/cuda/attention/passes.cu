#include <algorithm>

#include "xformers/kernels/cuda/attention/passes.h"
#include "xformers/kernels/cuda/attention/quantised_rows.cuh"
#include "xformers/kernels/cuda/attention/seqlen.cuh"
#include "xformers/kernels/cuda/base/cuda_check.h"

namespace xformers::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>(std::min<int64_t>(ceil_div(items, per_block), 1 << 20));
}

// Calls fn with a value of the element type.
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

template <class C, class T>
__device__ C widen(T x) {
  if constexpr (std::is_same_v<T, double>) {
    return x;
  } else {
    return static_cast<C>(static_cast<float>(x));
  }
}

struct Place {
  int64_t batch, group, head, row;
};
// Rows over [batch, groups, heads, seqlen], the last fastest.
__device__ Place place_of(int64_t index, const AttentionShape& shape, int64_t seqlen) {
  Place place;
  place.row = index % seqlen, index /= seqlen;
  place.head = index % shape.heads_per_group, index /= shape.heads_per_group;
  place.group = index % shape.num_groups;
  place.batch = index / shape.num_groups;
  return place;
}
__device__ int64_t offset(const HeadsTensor& t, const Place& at) {
  return at.batch * t.batch_stride + at.row * t.seq_stride + at.group * t.group_stride + at.head * t.head_stride;
}
__device__ int64_t offset(const RowTensor& t, const Place& at) {
  return at.batch * t.batch_stride + at.group * t.group_stride + at.head * t.head_stride + at.row;
}

// Whether a row belongs to a sequence: the last one that begins at or before it. (Where offsets don't rise, rows may
// stay what they are; nothing is written outside of the tensors.)
__device__ bool covered(const AttentionShape& shape, const SeqLayout& seq, bool keys, int64_t row) {
  const int32_t* begins = keys ? seq.cu_seqlens_k : seq.cu_seqlens_q;
  int64_t low = 0, high = seq.num_sequences;  // begins[low - 1] <= row < begins[high]
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    (begins[middle] <= row ? low : high) = begins[middle] <= row ? middle + 1 : middle;
  }
  for (int64_t index = low - 1; index >= 0; --index) {
    const Sequence sequence = sequence_at(shape, seq, index);
    const int64_t begin = keys ? sequence.k_begin : sequence.q_begin;
    if (row < begin + (keys ? sequence.seqlen_k : sequence.seqlen_q)) return true;
    if (begins[index] < begins[low - 1]) return false;  // only sequences that begin at the same row may hold it too
  }
  return false;
}

template <class T>
__global__ void clear_heads(HeadsTensor tensor, int64_t dim, AttentionShape shape, SeqLayout seq, bool keys) {
  const bool any_order = keys && seq.seqused_k;  // ranges of keys may lie anywhere: all rows are cleared
  const int64_t rows = keys ? shape.seqlen_k : shape.seqlen_q;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    if (!any_order && covered(shape, seq, keys, row)) continue;
    for (int64_t index = threadIdx.x; index < shape.num_heads() * dim; index += blockDim.x) {
      const int64_t head = index / dim;
      const Place at{0, head / shape.heads_per_group, head % shape.heads_per_group, row};
      static_cast<T*>(tensor.data)[offset(tensor, at) + index % dim] = to_element<T>(0.0f);
    }
  }
}

template <class C>
__global__ void clear_lse(RowTensor lse, AttentionShape shape, SeqLayout seq) {
  for (int64_t row = blockIdx.x; row < shape.seqlen_q; row += gridDim.x) {
    if (covered(shape, seq, false, row)) continue;
    for (int64_t head = threadIdx.x; head < shape.num_heads(); head += blockDim.x) {
      const Place at{0, head / shape.heads_per_group, head % shape.heads_per_group, row};
      static_cast<C*>(lse.data)[offset(lse, at)] = static_cast<C>(-INFINITY);
    }
  }
}

// One warp per row: the splits' results, weighted by their shares of the sum.
template <class Out>
__global__ void merge_rows(const __grid_constant__ FwdArgs args) {
  const AttentionFwdParams& p = args.p;
  const int lane = threadIdx.x % 32;
  for (int64_t row = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32; row < args.total_rows;
       row += gridDim.x * int64_t{kWarps}) {
    const Place at = place_of(row, p.shape, p.shape.seqlen_q);
    float largest = -INFINITY;
    for (int s = lane; s < args.num_splits; s += 32)
      largest = fmaxf(largest, args.lse_partial[s * args.total_rows + row]);
    for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
    float sum = 0;
    if (largest != -INFINITY) {
      for (int s = lane; s < args.num_splits; s += 32)
        sum += expf(args.lse_partial[s * args.total_rows + row] - largest);
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    }
    if (lane == 0 && p.lse.data) {
      static_cast<float*>(p.lse.data)[offset(p.lse, at)] = largest == -INFINITY ? largest : largest + logf(sum);
    }
    Out* const out = static_cast<Out*>(p.out.data) + offset(p.out, at);
    for (int64_t d = lane; d < p.shape.head_dim_v; d += 32) {
      float x = 0;
      for (int s = 0; s < args.num_splits && largest != -INFINITY; ++s) {
        const int64_t from = s * args.total_rows + row;
        const float weight = expf(args.lse_partial[from] - largest);
        if (weight > 0) x += weight * args.out_partial[from * p.shape.head_dim_v + d];
      }
      out[d] = to_element<Out>(largest == -INFINITY ? 0.0f : x / sum);
    }
  }
}

__global__ void fill(float* to, int64_t count, float value) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < count; i += gridDim.x * int64_t{kThreads})
    to[i] = value;
}

template <class T>
__global__ void prepare_rows(const __grid_constant__ BwdArgs args, double lse_factor, int64_t rows) {
  using C = Sum<T>;
  const AttentionBwdParams& p = args.p;
  const int lane = threadIdx.x % 32;
  for (int64_t row = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32; row < rows; row += gridDim.x * int64_t{kWarps}) {
    const Place at = place_of(row, p.shape, p.shape.seqlen_q);
    const C lse = static_cast<const C*>(p.lse.data)[offset(p.lse, at)];
    const bool sees_keys = lse != static_cast<C>(-INFINITY);
    C delta = 0;
    if (sees_keys) {
      const T* out = static_cast<const T*>(p.out.data) + offset(p.out, at);
      const T* dout = static_cast<const T*>(p.dout.data) + offset(p.dout, at);
      for (int64_t d = lane; d < p.shape.head_dim_v; d += 32) delta += widen<C>(out[d]) * widen<C>(dout[d]);
      for (int step = 16; step > 0; step /= 2) delta += __shfl_xor_sync(0xffffffffu, delta, step);
      if (p.dlse.data) delta -= static_cast<const C*>(p.dlse.data)[offset(p.dlse, at)];
    }
    if (lane == 0) {
      static_cast<C*>(args.lse)[row] = sees_keys ? lse * static_cast<C>(lse_factor) : static_cast<C>(INFINITY);
      static_cast<C*>(args.delta)[row] = delta;
    }
  }
}

template <class T>
__global__ void clear_bias(ScoreBias bias, AttentionShape shape) {
  const int64_t count = shape.batch * shape.num_heads() * shape.seqlen_q * shape.seqlen_k;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < count; i += gridDim.x * int64_t{kThreads}) {
    const Place at = place_of(i / shape.seqlen_k, shape, shape.seqlen_q);
    static_cast<T*>(
        bias.data)[at.batch * bias.batch_stride + at.group * bias.group_stride + at.head * bias.head_stride +
                   at.row * bias.q_stride + i % shape.seqlen_k * bias.k_stride] = to_element<T>(0.0f);
  }
}

}  // namespace

void clear_uncovered(const HeadsTensor& tensor, DType dtype, int64_t dim, const AttentionShape& shape,
                     const SeqLayout& seq, Rows which, cudaStream_t stream) {
  const int64_t rows = which == Rows::kKeys ? shape.seqlen_k : shape.seqlen_q;
  if (rows == 0) return;
  with_type(dtype, [&](auto type) {
    clear_heads<decltype(type)><<<blocks_for(rows, 1), 128, 0, stream>>>(tensor, dim, shape, seq, which == Rows::kKeys);
  });
  XFORMERS_CUDA_CHECK(cudaGetLastError());
}

void clear_uncovered(const RowTensor& lse, const AttentionShape& shape, const SeqLayout& seq, cudaStream_t stream) {
  if (shape.seqlen_q == 0) return;
  if (shape.dtype == DType::kFloat64) {
    clear_lse<double><<<blocks_for(shape.seqlen_q, 1), 32, 0, stream>>>(lse, shape, seq);
  } else {
    clear_lse<float><<<blocks_for(shape.seqlen_q, 1), 32, 0, stream>>>(lse, shape, seq);
  }
  XFORMERS_CUDA_CHECK(cudaGetLastError());
}

void merge_splits(const FwdArgs& args, cudaStream_t stream) {
  if (args.total_rows == 0) return;
  const unsigned blocks = blocks_for(args.total_rows, kWarps);
  if (args.p.wide_out) {
    merge_rows<float><<<blocks, kThreads, 0, stream>>>(args);
  } else {
    with_type(args.p.shape.dtype,
              [&](auto type) { merge_rows<decltype(type)><<<blocks, kThreads, 0, stream>>>(args); });
  }
  XFORMERS_CUDA_CHECK(cudaGetLastError());
}

void clear_partial_lse(const FwdArgs& args, cudaStream_t stream) {
  const int64_t count = args.num_splits * args.total_rows;
  fill<<<blocks_for(count, kThreads), kThreads, 0, stream>>>(args.lse_partial, count, -INFINITY);
  XFORMERS_CUDA_CHECK(cudaGetLastError());
}

void prepare_backward(const BwdArgs& args, double lse_factor, cudaStream_t stream) {
  const AttentionShape& shape = args.p.shape;
  const int64_t rows = shape.batch * shape.num_heads() * shape.seqlen_q;
  if (rows == 0) return;
  with_type(shape.dtype, [&](auto type) {
    prepare_rows<decltype(type)><<<blocks_for(rows, kWarps), kThreads, 0, stream>>>(args, lse_factor, rows);
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
    clear_bias<decltype(type)><<<blocks_for(count, kThreads), kThreads, 0, stream>>>(params.dbias, shape);
  });
  XFORMERS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace xformers::cuda
