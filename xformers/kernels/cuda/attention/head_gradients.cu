#include <cub/block/block_reduce.cuh>

#include "xformers/kernels/cuda/attention/head_gradients.h"
#include "xformers/kernels/cuda/attention/scheduler.cuh"
#include "xformers/kernels/cuda/attention/score_mods.cuh"
#include "xformers/kernels/cuda/attention/split_merge.cuh"
#include "xformers/kernels/cuda/base/launch.h"

namespace xformers::cuda {
namespace {

constexpr int kThreads = 256;

// A block has one sequence and head.
struct NumberPlace {
  int64_t sequence;
  int group, head;
  int64_t of_all;  // (batch row * num_heads + head)
};
__device__ NumberPlace number_place(const AttentionBwdParams& p) {
  const int64_t heads = p.shape.num_heads(), sequence = blockIdx.x / heads;
  const int head = static_cast<int>(blockIdx.x % heads), per_group = static_cast<int>(p.shape.heads_per_group);
  return {sequence, head / per_group, head % per_group, (p.seq.packed() ? 0 : sequence * heads) + head};
}

template <class C>
__device__ void store_number(const HeadNumbers& to, const NumberPlace& place, C x) {
  static_cast<C*>(to.data)[to.offset(place.sequence, place.group, place.head)] = x;
}

template <class C>
__global__ void __launch_bounds__(kThreads) sum_slopes(const __grid_constant__ BwdArgs args) {
  using Reduce = cub::BlockReduce<double, kThreads>;
  __shared__ typename Reduce::TempStorage memory;
  const NumberPlace place = number_place(args.p);
  const SlopePart* const parts = args.slope_parts + place.of_all * args.slope_parts_per_head;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < args.slope_parts_per_head; i += kThreads) {
    const SlopePart part = parts[i];
    if (part.sequence == place.sequence) sum += part.sum;
  }
  sum = Reduce(memory).Sum(sum);
  if (threadIdx.x == 0) store_number(args.p.dslopes, place, static_cast<C>(-sum));
}

// A row that sees no key has its sink for an lse, so it counts, too; that of a sink of -inf does not.
template <class C>
__global__ void __launch_bounds__(kThreads) sum_sinks(const __grid_constant__ BwdArgs args) {
  using Reduce = cub::BlockReduce<double, kThreads>;
  __shared__ typename Reduce::TempStorage memory;
  const AttentionBwdParams& p = args.p;
  const NumberPlace place = number_place(p);
  const Sequence sequence = sequence_at(p.shape, p.seq, place.sequence);
  const C sink = number_at<C>(p.mods.sinks, place.sequence, place.group, place.head);
  const C* const delta = static_cast<const C*>(args.delta) + place.of_all * p.shape.seqlen_q + sequence.q_begin;
  double sum = 0;
#pragma unroll 4
  for (int query = threadIdx.x; query < sequence.seqlen_q; query += kThreads) {
    const RowLse<C> lse = load_lse<C>(p, sequence.batch, place.group, place.head, sequence.q_begin + query);
    sum += static_cast<double>(exp((sink - lse.lse) - lse.low) * delta[query]);
  }
  sum = Reduce(memory).Sum(sum);
  if (threadIdx.x == 0) store_number(p.dsinks, place, static_cast<C>(-sum / args.delta_factor));
}

int64_t numbers_of(const AttentionBwdParams& p) { return num_sequences(p.shape, p.seq) * p.shape.num_heads(); }

}  // namespace

size_t slope_part_bytes(const AttentionBwdParams& p, int64_t parts) {
  if (!p.dslopes.data) return 0;
  return (static_cast<size_t>(p.shape.batch * p.shape.num_heads() * parts) * sizeof(SlopePart) + 255) / 256 * 256;
}

void set_slope_parts(BwdArgs& args, int64_t parts, void* memory) {
  if (!args.p.dslopes.data) return;
  args.slope_parts = static_cast<SlopePart*>(memory), args.slope_parts_per_head = parts;
}

void sum_slope_parts(const BwdArgs& args, cudaStream_t stream) {
  if (!args.slope_parts) return;
  const auto kernel = args.p.shape.dtype == DType::kFloat64 ? sum_slopes<double> : sum_slopes<float>;
  launch<0>(kernel, numbers_of(args.p), 1, kThreads, stream, args);
}

void sum_sink_gradients(const BwdArgs& args, cudaStream_t stream) {
  if (!args.p.dsinks.data) return;
  const auto kernel = args.p.shape.dtype == DType::kFloat64 ? sum_sinks<double> : sum_sinks<float>;
  launch<0>(kernel, numbers_of(args.p), 1, kThreads, stream, args);
}

}  // namespace xformers::cuda
