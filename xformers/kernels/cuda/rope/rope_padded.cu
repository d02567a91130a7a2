// Queries and keys turned by their positions, keys and values appended to padded caches: one pass, each element moved
// once.
//
// Threads: `lanes` neighbouring ones per token, lanes = columns x heads per pass; a thread keeps its column and visits
// heads (those of q, then of k, then of v). The first heads are loaded before anything is known about the token; then
// its lanes find where it belongs and compute each sine once.
// Shared memory: per token of the block, sines [pairs] and cosines [pairs]; kept in registers they would cost one of
// five blocks.
#include <algorithm>

#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/rope/pairs.h"
#include "xformers/kernels/cuda/rope/rope_cuda.h"
#include "xformers/kernels/params/checks.h"

namespace xformers::cuda {
namespace {

constexpr int kMaxThreads = 256;

struct Args {
  RopePaddedParams rope;
  int lanes, tokens;      // threads per token, tokens per block
  unsigned per_sequence;  // queries, were all sequences equally long
  RopePairs pairs;
};

struct Place {
  int64_t slot;     // in the caches; -1: nowhere
  double position;  // NaN: nowhere
};

// The last sequence with q_starts[b] <= row.
__device__ int64_t search(const RopePaddedParams& p, int64_t row) {
  int64_t low = 0, high = p.batch;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (p.q_starts[middle] <= row ? low : high) = middle;
  }
  return low;
}

__device__ __forceinline__ Place place_of(const Args& args, int64_t row) {
  const RopePaddedParams& p = args.rope;
  int64_t b = static_cast<uint32_t>(row) / args.per_sequence;
  if (b >= p.batch) b = p.batch - 1;
  int64_t begin, end, start, length, shift;
  const auto read = [&] {  // loads that don't wait for each other
    begin = p.q_starts[b], end = p.q_starts[b + 1], start = p.k_starts[b], length = p.k_lengths[b];
    shift = p.first_seqpos ? p.first_seqpos[b] : 0;
  };
  read();  // where sequences are equally long, this is it
  const int64_t given = p.seqpos ? p.seqpos[row] : 0;
  if (row < begin || row >= end) {
    b = search(p, row);
    read();
  }
  const int64_t slot = start + length - (end - row);
  if (row < begin || row >= end || slot < start || start < 0 || slot >= p.num_keys) return {-1, nan("")};
  return {slot, static_cast<double>(p.seqpos ? given : slot - start + shift)};
}

enum Part { kQuery, kKey, kValue };
struct Head {
  Part part;
  int64_t group, head;
};

__device__ __forceinline__ Head head_of(const RopePaddedParams& p, unsigned index) {
  const unsigned queries = static_cast<unsigned>(p.groups * p.heads_q),
                 keys = static_cast<unsigned>(p.groups * p.heads_kv);
  const Part part = index < queries ? kQuery : index < queries + keys ? kKey : kValue;
  const unsigned of_part = part == kQuery ? index : part == kKey ? index - queries : index - queries - keys;
  if (p.groups == 1) return {part, 0, of_part};
  const unsigned heads = static_cast<unsigned>(part == kQuery ? p.heads_q : p.heads_kv);
  return {part, of_part / heads, of_part % heads};
}

template <class T>
__device__ __forceinline__ T* at(const RopeTensor& t, int64_t row, const Head& head) {
  return static_cast<T*>(t.data) + row * t.seq_stride + head.group * t.group_stride + head.head * t.head_stride;
}

template <class T, class C, int kWidth>
__global__ void __launch_bounds__(kMaxThreads, 4) rope_padded_kernel(const __grid_constant__ Args args) {
  constexpr int kItems = 2;  // heads in flight per thread
  extern __shared__ double table_memory[];
  const RopePaddedParams& p = args.rope;
  const RopePairs& pairs = args.pairs;
  const int token = static_cast<int>(threadIdx.x) / args.lanes, lane = static_cast<int>(threadIdx.x) % args.lanes;
  const int column = lane % pairs.columns, per_pass = args.lanes / pairs.columns;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * args.tokens + token;
  const bool active = token < args.tokens && row < p.num_queries;
  const int heads = static_cast<int>(p.groups * (p.heads_q + 2 * p.heads_kv));
  const int64_t first = first_piece<kWidth>(pairs, column), second = second_piece<kWidth>(pairs, column);
  C* const sines = reinterpret_cast<C*>(table_memory) + token * 2 * pairs.count;
  C* const cosines = sines + pairs.count;

  Packed<T, kWidth> a[kItems], b[kItems];
  const auto load_heads = [&](int from) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (from + i * per_pass >= heads) break;
      const Head head = head_of(p, from + i * per_pass);
      const T* x = at<const T>(head.part == kQuery ? p.q : head.part == kKey ? p.k : p.v, row, head);
      a[i] = load<kWidth>(x + first);
      b[i] = load<kWidth>(x + second);
    }
  };

  int head_index = lane / pairs.columns;
  Place place{-1, 0};
  if (active) {
    const double frequency =
        lane < pairs.count ? pairs.frequencies[lane] : 0;  // loaded early: indices differ, so it takes long
    load_heads(head_index);
    place = place_of(args, row);
    for (int j = lane; j < pairs.count; j += args.lanes) {
      sine_and_cosine(place.position, j == lane ? frequency : pairs.frequencies[j], sines[j], cosines[j]);
    }
  }
  __syncthreads();
  if (!active) return;
  while (true) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (head_index + i * per_pass >= heads) break;
      const Head head = head_of(p, head_index + i * per_pass);
      if (head.part != kQuery && place.slot < 0) break;
      if (head.part != kValue) {
#pragma unroll
        for (int group = 0; group < kTurnGroups<kWidth>; ++group) {
          constexpr int kGroup = kTurnGroup<kWidth>;
          const int pair = group_start<kWidth>(pairs, column, group);
          const auto sine = load<kGroup>(sines + pair), cosine = load<kGroup>(cosines + pair);
          turn_group(a[i], b[i], pairs.adjacents, group, sine.at, cosine.at);
        }
      }
      T* out = head.part == kQuery ? at<T>(p.out_q, row, head)
                                   : at<T>(head.part == kKey ? p.cache_k : p.cache_v, place.slot, head);
      store(out + first, a[i]);
      store(out + second, b[i]);
    }
    head_index += kItems * per_pass;
    if (head_index >= heads) return;
    load_heads(head_index);
  }
}

bool rows_fit_vectors(const RopePaddedParams& p) {
  for (const RopeTensor* t : {&p.q, &p.k, &p.v, &p.out_q, &p.cache_k, &p.cache_v}) {
    if (!rows_are_aligned(t->data, t->seq_stride, p.dtype) || !rows_are_aligned(t->data, t->group_stride, p.dtype) ||
        !rows_are_aligned(t->data, t->head_stride, p.dtype)) {
      return false;
    }
  }
  return true;
}

}  // namespace

void rope_padded(const RopePaddedParams& p, const Stream& stream) {
  check(p);
  const int64_t heads = p.groups * (p.heads_q + 2 * p.heads_kv);
  if (p.num_queries == 0 || p.batch == 0 || heads == 0) return;
  with_rope_types(
      p.dtype, p.layout.rotate_in_fp64, rows_fit_vectors(p), p.head_dim, [&]<class T, class C, int kWidth>() {
        for_each_launch(p.head_dim, kWidth, p.layout.adjacents, p.scaling, [&](const RopePairs& pairs) {
          const int64_t most = std::max(1, kMaxThreads / pairs.columns), passes = (heads + most - 1) / most;
          const int lanes = static_cast<int>((heads + passes - 1) / passes) * pairs.columns;
          const int tokens = std::max(1, kMaxThreads / 2 / lanes);
          const Args args{.rope = p,
                          .lanes = lanes,
                          .tokens = tokens,
                          .per_sequence = static_cast<unsigned>(std::max<int64_t>(1, p.num_queries / p.batch)),
                          .pairs = pairs};
          const int64_t blocks = (p.num_queries + tokens - 1) / tokens;
          const int threads = (tokens * lanes + 31) / 32 * 32;
          const int table = 2 * (threads / lanes + 1) * pairs.count * static_cast<int>(sizeof(C));
          launch_with(rope_padded_kernel<T, C, kWidth>, blocks, 1, threads, table,
                      static_cast<cudaStream_t>(stream.stream), args);
        });
      });
}

}  // namespace xformers::cuda
