// Rotary embeddings, token by token: the sines and cosines of a position serve all its heads. Compiled once per
// instruction set.
#include <type_traits>

#include "xformers/kernels/cpu/base/blocks.h"
#include "xformers/kernels/cpu/base/scratch.h"
#include "xformers/kernels/cpu/rope/rope_cpu.h"
#include "xformers/kernels/cpu/rope/turn-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {
namespace {

template <class T>
T* head_at(const RopeTensor& tensor, int64_t row, int64_t group, int64_t head) {
  return static_cast<T*>(tensor.data) + row * tensor.seq_stride + group * tensor.group_stride +
         head * tensor.head_stride;
}

// The sequence of a query row: the last b with q_starts[b] <= row.
int64_t sequence_of(const RopePaddedParams& p, int64_t row) {
  int64_t low = 0, high = p.batch;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (p.q_starts[middle] <= row ? low : high) = middle;
  }
  return low;
}

template <class T, class C, bool kStream>
void one_token(const RopePaddedParams& p, const double* frequencies, int64_t row, int64_t b, const Turn<C>& turn) {
  const int64_t slot = int64_t{p.k_starts[b]} + p.k_lengths[b] - (p.q_starts[b + 1] - row);
  int64_t position = slot - p.k_starts[b];
  if (p.first_seqpos) position += p.first_seqpos[b];
  if (p.seqpos) position = p.seqpos[row];
  fill_turn(static_cast<double>(position), /*inverse=*/false, frequencies, p.head_dim, p.layout.adjacents, turn);
  const int64_t next = row + 1 < p.num_queries ? 1 : 0;
  for (int64_t group = 0; group < p.groups; ++group) {
    for (int64_t head = 0; head < p.heads_q; ++head) {
      turn_head<kStream>(head_at<const T>(p.q, row, group, head), next * p.q.seq_stride,
                         head_at<T>(p.out_q, row, group, head), p.head_dim, p.layout.adjacents, turn);
    }
    for (int64_t head = 0; head < p.heads_kv; ++head) {
      turn_head<kStream>(head_at<const T>(p.k, row, group, head), next * p.k.seq_stride,
                         head_at<T>(p.cache_k, slot, group, head), p.head_dim, p.layout.adjacents, turn);
      const T* value = head_at<const T>(p.v, row, group, head);
      T* cached = head_at<T>(p.cache_v, slot, group, head);
      const size_t bytes = static_cast<size_t>(p.head_dim) * sizeof(T);
      kStream ? stream_bytes(cached, value, bytes) : static_cast<void>(std::memcpy(cached, value, bytes));
    }
  }
}

template <class T, class C, bool kStream>
void all_tokens(const RopePaddedParams& p, const double* frequencies, const Threads& threads) {
  const int64_t token_bytes =
      2 * p.groups * (p.heads_q + 2 * p.heads_kv) * p.head_dim * static_cast<int64_t>(sizeof(T));
  const int64_t block = token_bytes > 0 ? max_of(block_bytes(p.num_queries * token_bytes) / token_bytes, 1) : 1;
  Arena sizes;
  sizes.take<C>(2 * p.head_dim);
  const size_t turn_bytes = sizes.bytes();
  const ThreadScratch scratch(turn_bytes * threads.num_threads);
  for_each_task(threads, (p.num_queries + block - 1) / block, [&](int64_t task, int worker) {
    C* const table = reinterpret_cast<C*>(scratch.data() + worker * turn_bytes);
    const Turn<C> turn{table, table + p.head_dim};
    const int64_t end = (task + 1) * block < p.num_queries ? (task + 1) * block : p.num_queries;
    int64_t b = sequence_of(p, task * block);
    for (int64_t row = task * block; row < end; ++row) {
      while (row >= p.q_starts[b + 1]) ++b;  // also past sequences without queries
      one_token<T, C, kStream>(p, frequencies, row, b, turn);
    }
    finish_streams();
  });
}

// Positions share sines and cosines across `outer`, so a task takes a block of positions in many outer rows.
template <class T, class C, bool kStream>
void all_positions(const RotaryParams& p, const double* frequencies, const Threads& threads) {
  constexpr int64_t kPositions = 16;
  const int64_t row_bytes = 2 * p.head_dim * static_cast<int64_t>(sizeof(T));
  int64_t outer_block = 4 * kBlockBytes / (kPositions * row_bytes) + 1;
  if (outer_block > p.outer) outer_block = p.outer;
  const int64_t outer_tasks = (p.outer + outer_block - 1) / outer_block;
  const int64_t seq_tasks = (p.seqlen + kPositions - 1) / kPositions;
  Arena sizes;
  sizes.take<C>(2 * kPositions * p.head_dim);
  const size_t table_bytes = sizes.bytes();
  const ThreadScratch scratch(table_bytes * threads.num_threads);
  for_each_task(threads, outer_tasks * seq_tasks, [&](int64_t task, int worker) {
    C* const table = reinterpret_cast<C*>(scratch.data() + worker * table_bytes);
    const int64_t s_begin = task / outer_tasks * kPositions, o_begin = task % outer_tasks * outer_block;
    const int64_t s_end = min_of(s_begin + kPositions, p.seqlen), o_end = min_of(o_begin + outer_block, p.outer);
    const auto turn_of = [&](int64_t s) {
      C* const cos = table + (s - s_begin) * 2 * p.head_dim;
      return Turn<C>{cos, cos + p.head_dim};
    };
    for (int64_t s = s_begin; s < s_end; ++s) {
      fill_turn(static_cast<double>(s), p.inverse, frequencies, p.head_dim, p.layout.adjacents, turn_of(s));
    }
    for (int64_t o = o_begin; o < o_end; ++o) {
      for (int64_t s = s_begin; s < s_end; ++s) {
        turn_head<kStream>(static_cast<const T*>(p.x) + o * p.x_outer_stride + s * p.x_seq_stride,
                           o + 1 < o_end ? p.x_outer_stride : 0,
                           static_cast<T*>(p.out) + o * p.out_outer_stride + s * p.out_seq_stride, p.head_dim,
                           p.layout.adjacents, turn_of(s));
      }
    }
    finish_streams();
  });
}

// fn.template operator()<T, C, kStream>(): element and rotation type.
template <class Fn>
void specialise(DType dtype, bool fp64, int64_t elements, const Fn& fn) {
  with_element(dtype, [&]<class T>(T) {
    const bool stream = elements * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
    if (fp64) {
      fn.template operator()<T, double, false>();
    } else if (stream) {
      fn.template operator()<T, Compute<T>, true>();
    } else {
      fn.template operator()<T, Compute<T>, false>();
    }
  });
}

}  // namespace

void rope_padded(const RopePaddedParams& p, const double* frequencies, const Threads& threads) {
  specialise(p.dtype, p.layout.rotate_in_fp64, p.num_queries * p.groups * p.heads_q * p.head_dim,
             [&]<class T, class C, bool kStream>() { all_tokens<T, C, kStream>(p, frequencies, threads); });
}

void rotary(const RotaryParams& p, const double* frequencies, const Threads& threads) {
  specialise(p.dtype, p.layout.rotate_in_fp64, p.outer * p.seqlen * p.head_dim,
             [&]<class T, class C, bool kStream>() { all_positions<T, C, kStream>(p, frequencies, threads); });
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
