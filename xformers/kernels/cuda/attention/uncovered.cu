#include <algorithm>

#include "xformers/kernels/base/dispatch.h"
#include "xformers/kernels/cuda/attention/quantised_rows.cuh"
#include "xformers/kernels/cuda/attention/scheduler.cuh"
#include "xformers/kernels/cuda/attention/split_merge.cuh"
#include "xformers/kernels/cuda/attention/uncovered.h"
#include "xformers/kernels/cuda/base/cuda_check.h"

namespace xformers::cuda {
namespace {

constexpr int kClearThreads = 128;

unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>(std::min<int64_t>(ceil_div(items, per_block), 1 << 20));
}

struct Place {
  int64_t batch, group, head, row;
};
__device__ int64_t offset(const HeadsTensor& t, const Place& at) {
  return at.batch * t.batch_stride + at.row * t.seq_stride + at.group * t.group_stride + at.head * t.head_stride;
}

// Whether a row belongs to a sequence: the last one that begins at or before it. (Where offsets don't rise, rows may
// stay what they are; nothing is written outside of the tensors.)
__device__ bool covered(const AttentionShape& shape, const SeqLayout& seq, bool keys, int64_t row) {
  const int32_t* begins = keys ? seq.cu_seqlens_k : seq.cu_seqlens_q;
  const int64_t last = last_at_or_before(begins, seq.num_sequences, row);
  for (int64_t index = last; index >= 0; --index) {
    const Sequence sequence = sequence_at(shape, seq, index);
    const int64_t begin = keys ? sequence.k_begin : sequence.q_begin;
    if (row < begin + (keys ? sequence.seqlen_k : sequence.seqlen_q)) return true;
    if (begins[index] < begins[last]) return false;  // only sequences that begin at the same row may hold it too
  }
  return false;
}

// A block checks as many rows as it has threads, and clears together what is uncovered among them.
template <class Clear>  // clear(row), by all threads
__device__ void for_uncovered_rows(const AttentionShape& shape, const SeqLayout& seq, bool keys, const Clear& clear) {
  __shared__ unsigned uncovered[kClearThreads / 32];
  const bool any_order = keys && seq.seqused_k;  // ranges of keys may lie anywhere: all rows are cleared
  const int64_t rows = keys ? shape.seqlen_k : shape.seqlen_q;
  for (int64_t first = blockIdx.x * int64_t{kClearThreads}; first < rows; first += gridDim.x * int64_t{kClearThreads}) {
    const int64_t mine = first + threadIdx.x;
    const unsigned found = __ballot_sync(0xffffffffu, mine < rows && (any_order || !covered(shape, seq, keys, mine)));
    __syncthreads();
    if (threadIdx.x % 32 == 0) uncovered[threadIdx.x / 32] = found;
    __syncthreads();
    for (int warp = 0; warp < kClearThreads / 32; ++warp) {
      for (unsigned left = uncovered[warp]; left != 0; left &= left - 1) clear(first + warp * 32 + __ffs(left) - 1);
    }
  }
}

// blockIdx.y: dq, dk or dv.
template <class T>
__global__ void __launch_bounds__(kClearThreads) clear_gradients(const __grid_constant__ AttentionBwdParams p) {
  const bool keys = blockIdx.y > 0;
  const HeadsTensor& tensor = blockIdx.y == 0 ? p.dq : blockIdx.y == 1 ? p.dk : p.dv;
  const int64_t dim = blockIdx.y == 2 ? p.shape.head_dim_v : p.shape.head_dim;
  const int heads = static_cast<int>(p.shape.num_heads()), per_group = static_cast<int>(p.shape.heads_per_group);
  for_uncovered_rows(p.shape, p.seq, keys, [&](int64_t row) {
    for (int head = threadIdx.x / 32; head < heads; head += kClearThreads / 32) {
      T* const to = static_cast<T*>(tensor.data) + offset(tensor, {0, head / per_group, head % per_group, row});
      for (int64_t d = threadIdx.x % 32; d < dim; d += 32) to[d] = to_element<T>(0.0f);
    }
  });
}

template <class Out>
__global__ void __launch_bounds__(kClearThreads) clear_results(const __grid_constant__ AttentionFwdParams p) {
  const int heads = static_cast<int>(p.shape.num_heads()), per_group = static_cast<int>(p.shape.heads_per_group);
  for_uncovered_rows(p.shape, p.seq, false, [&](int64_t row) {
    for (int head = threadIdx.x / 32; head < heads; head += kClearThreads / 32) {
      const Place at{0, head / per_group, head % per_group, row};
      Out* const to = static_cast<Out*>(p.out.data) + offset(p.out, at);
      for (int64_t d = threadIdx.x % 32; d < p.shape.head_dim_v; d += 32) to[d] = to_element<Out>(0.0f);
      if (threadIdx.x % 32 > 0) continue;
      if (p.shape.dtype == DType::kFloat64) {
        store_lse(p, row_lse(-double{INFINITY}, 0.0), 0, at.group, at.head, row);
      } else {
        store_lse(p, row_lse(-INFINITY, 0.0f), 0, at.group, at.head, row);
      }
    }
  });
}

}  // namespace

void clear_uncovered_gradients(const AttentionBwdParams& p, cudaStream_t stream) {
  const int64_t rows = std::max(p.shape.seqlen_q, p.shape.seqlen_k);
  if (!p.seq.packed() || rows == 0) return;
  dispatch_dtype<__nv_bfloat16, __half>(p.shape.dtype, [&](auto type) {
    clear_gradients<decltype(type)><<<dim3(blocks_for(rows, kClearThreads), 3), kClearThreads, 0, stream>>>(p);
  });
  XFORMERS_CUDA_CHECK(cudaGetLastError());
}

void clear_uncovered_results(const AttentionFwdParams& p, cudaStream_t stream) {
  if (!p.seq.packed() || p.shape.seqlen_q == 0) return;
  const bool wide = p.wide_out && p.shape.dtype != DType::kFloat64;
  dispatch_dtype<__nv_bfloat16, __half>(wide ? DType::kFloat32 : p.shape.dtype, [&](auto type) {
    clear_results<decltype(type)><<<blocks_for(p.shape.seqlen_q, kClearThreads), kClearThreads, 0, stream>>>(p);
  });
  XFORMERS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace xformers::cuda
