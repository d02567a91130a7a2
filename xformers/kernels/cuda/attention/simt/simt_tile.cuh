// Attention without tensor cores, for every dtype and head_dim: the pieces that forward and backward share.
//
// 256 threads stand 16 x 16 over a tile of scores; thread (y, x) owns rows y * (rows / 16) ... and columns
// x, x + 16, ... Head dims pass through shared memory in chunks of 64, so that head_dim only costs registers where
// results are summed. C, the type of sums, is float, or double for fp64.
#pragma once

#include "xformers/kernels/cuda/attention/block_walk.cuh"
#include "xformers/kernels/cuda/attention/dropout.cuh"
#include "xformers/kernels/cuda/attention/key_walk.cuh"
#include "xformers/kernels/cuda/attention/mask.cuh"
#include "xformers/kernels/cuda/attention/quantised_rows.cuh"
#include "xformers/kernels/cuda/attention/scheduler.cuh"
#include "xformers/kernels/cuda/attention/sink.cuh"

namespace xformers::cuda::simt {

inline constexpr int kSide = 16, kThreads = kSide * kSide, kChunkDims = 64, kPitch = kChunkDims + 4;
inline constexpr int kDimsPerThread = kChunkDims / kSide;  // neighbours, of a chunk's result

__device__ __forceinline__ int thread_y() { return threadIdx.x / kSide; }
__device__ __forceinline__ int thread_x() { return threadIdx.x % kSide; }

template <class C, class T>
__device__ __forceinline__ C to_compute(T x) {
  if constexpr (std::is_same_v<T, double>) {
    return static_cast<C>(x);
  } else {
    return static_cast<C>(static_cast<float>(x));
  }
}

// One head of a tensor, by rows of one sequence.
template <class T>
struct HeadRows {
  T* data;
  int64_t stride;
  __device__ HeadRows(const HeadsTensor& tensor, const HeadTile& tile, int64_t first_row)
      : data(static_cast<T*>(tensor.data) + tile.offset(tensor) + first_row * tensor.seq_stride),
        stride(tensor.seq_stride) {}
  __device__ T* row(int64_t index) const { return data + index * stride; }
};

// 16 bytes of C: what one access to shared memory moves.
template <class C>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(C);
  C at[kSize];
};
template <class C>
__device__ __forceinline__ Vector<C> load_vector(const C* from) {
  return *reinterpret_cast<const Vector<C>*>(from);
}

// Four neighbours of a row from dim d on, zeros from `dim` on.
template <class C, class T>
__device__ __forceinline__ void load_four(C (&to)[4], const T* row, int d, int dim) {
  struct alignas(sizeof(T) >= 4 ? 16 : 8) Four {
    T at[4];
  };
  if (d + 4 <= dim && reinterpret_cast<uintptr_t>(row + d) % alignof(Four) == 0) {
    const Four four = *reinterpret_cast<const Four*>(row + d);
#pragma unroll
    for (int e = 0; e < 4; ++e) to[e] = to_compute<C>(four.at[e]);
  } else {
#pragma unroll
    for (int e = 0; e < 4; ++e) to[e] = d + e < dim ? to_compute<C>(row[d + e]) : C(0);
  }
}

// Dims [first_dim, first_dim + 64) of rows [0, kRows) into to[kRows][kPitch]; zeros past `rows` and `dim`.
// four(values, row, d) reads four neighbours.
template <int kRows, class C, class ReadFour>
__device__ __forceinline__ void load_chunk(C* to, int rows, int first_dim, const ReadFour& four) {
  const int d = threadIdx.x % (kChunkDims / 4) * 4;
#pragma unroll 4
  for (int row = threadIdx.x / (kChunkDims / 4); row < kRows; row += kThreads * 4 / kChunkDims) {
    C values[4] = {};
    if (row < rows) four(values, row, first_dim + d);
#pragma unroll
    for (int e = 0; e < 4; e += Vector<C>::kSize) {
      Vector<C> part;
#pragma unroll
      for (int i = 0; i < Vector<C>::kSize; ++i) part.at[i] = values[e + i];
      *reinterpret_cast<Vector<C>*>(to + row * kPitch + d + e) = part;
    }
  }
}

// sums[i][j] += a[row i] . b[column j] over one chunk.
template <int kRowsPer, int kColumnsPer, class C>
__device__ __forceinline__ void multiply_chunk(C (&sums)[kRowsPer][kColumnsPer], const C* a, const C* b) {
  constexpr int kSize = Vector<C>::kSize;
#pragma unroll 2
  for (int d = 0; d < kChunkDims; d += kSize) {
    Vector<C> left[kRowsPer], right[kColumnsPer];
#pragma unroll
    for (int i = 0; i < kRowsPer; ++i) left[i] = load_vector(a + (thread_y() * kRowsPer + i) * kPitch + d);
#pragma unroll
    for (int j = 0; j < kColumnsPer; ++j) right[j] = load_vector(b + (thread_x() + j * kSide) * kPitch + d);
#pragma unroll
    for (int e = 0; e < kSize; ++e)
#pragma unroll
      for (int i = 0; i < kRowsPer; ++i)
#pragma unroll
        for (int j = 0; j < kColumnsPer; ++j) sums[i][j] = fma(left[i].at[e], right[j].at[e], sums[i][j]);
  }
}

// Dim c of a thread in a chunk.
__device__ __forceinline__ int thread_dim(int c) { return thread_x() * kDimsPerThread + c; }

// sums[i][c] += left[row i][n] * right[n][dim c] over n < kDepth; rows of left are score_pitch<kDepth> apart.
template <int kDepth>
inline constexpr int score_pitch = kDepth + 4;
template <int kRowsPer, int kDepth, class C>
__device__ __forceinline__ void accumulate_chunk(C (&sums)[kRowsPer][kDimsPerThread], const C* left, const C* right) {
  constexpr int kSize = Vector<C>::kSize;
#pragma unroll 2
  for (int n = 0; n < kDepth; n += kSize) {
    Vector<C> factors[kRowsPer];
#pragma unroll
    for (int i = 0; i < kRowsPer; ++i)
      factors[i] = load_vector(left + (thread_y() * kRowsPer + i) * score_pitch<kDepth> + n);
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      Vector<C> row[kDimsPerThread / kSize];
#pragma unroll
      for (int c = 0; c < kDimsPerThread / kSize; ++c)
        row[c] = load_vector(right + (n + e) * kPitch + thread_dim(c * kSize));
#pragma unroll
      for (int i = 0; i < kRowsPer; ++i)
#pragma unroll
        for (int c = 0; c < kDimsPerThread; ++c)
          sums[i][c] = fma(factors[i].at[e], row[c / kSize].at[c % kSize], sums[i][c]);
    }
  }
}

__device__ __forceinline__ int64_t bias_offset(const ScoreBias& bias, const HeadTile& tile, int query, int key) {
  return tile.offset(bias) + query * bias.q_stride + key * bias.k_stride;
}

// |d(query) - key|, which ALiBi's slopes are multiplied by.
template <class C>
__device__ __forceinline__ C alibi_distance(const AttentionProblem& p, const HeadTile& tile, int query, int key) {
  return static_cast<C>(abs(query + alibi_shift(p.band, tile.sequence) - key));
}

// The score of a product of q and k that is visible, in natural units; cap_slope, if not null: what its dS is
// multiplied by for that of the product.
template <class T, class C>
__device__ __forceinline__ C score_of(const AttentionProblem& p, const HeadTile& tile, C product, int query, int key,
                                      C* cap_slope = nullptr) {
  const ScoreModifiers& mods = p.mods;
  C scale = static_cast<C>(p.softmax_scale);
  if (mods.softcap > 0) {
    const Capped<C> capped = Softcap<true, C>(scale, static_cast<C>(mods.softcap))(product);
    if (cap_slope) *cap_slope = capped.slope;
    product = capped.score, scale = 1;
  }
  if (mods.alibi_slopes.data) {
    const C slope = number_at<C>(mods.alibi_slopes, tile.sequence.index, tile.group, tile.head);
    product = fma(product, scale, -slope * alibi_distance<C>(p, tile, query, key)), scale = 1;
  }
  const T* const from = static_cast<const T*>(mods.bias.data);
  return biased(product, scale, from ? to_compute<C>(from[bias_offset(mods.bias, tile, query, key)]) : C(0));
}

// The tiles of rows `others`, each of kTile, that a tile's own rows look at: those of a range, or what a block mask
// leaves of it. By all threads together; `walk` lies in shared memory.
template <LinesOf kLinesOf, int kTile>
class TileWalk {
 public:
  using Walk = BlockWalk<kLinesOf, kTile / kSquare, kTile / kSquare>;

  __device__ __forceinline__ TileWalk(Walk& walk, const BlockMask& mask, const HeadTile& tile, Range others)
      : walk_(walk), mask_(mask), end_(others.end) {
    const Range steps = blocks_with(others, kTile);
    at_ = others.empty() ? others.end : steps.begin * kTile;
    if (!mask.present() || others.empty()) return;
    if (threadIdx.x < 32) {
      walk.begin(mask, static_cast<int>(tile.sequence.batch), tile.group, tile.head, tile.first, tile.first + tile.rows,
                 steps);
    }
    __syncthreads();
    at_ = walk.at(0).index * kTile;
  }
  // The first row of the tile; whether there is one.
  __device__ __forceinline__ int at() const { return at_; }
  __device__ __forceinline__ bool more() const { return at_ < end_; }
  __device__ __forceinline__ void advance() {
    if (!mask_.present()) {
      at_ += kTile;
      return;
    }
    __syncthreads();  // everybody is done with the step before
    if (threadIdx.x < 32) walk_.find(mask_, turn_ + 2);
    at_ = walk_.at(++turn_).index * kTile;
  }
  // Whether blocks let a row of the tile, counted from its first, see one of the others, counted from at().
  __device__ __forceinline__ bool shows(int row, int other) const {
    if (!mask_.present()) return true;
    const int query = (kLinesOf == LinesOf::kQueries ? row : other) % kSquare,
              key = (kLinesOf == LinesOf::kQueries ? other : row) % kSquare;
    return walk_.keys_of(mask_, turn_, row / kSquare, other / kSquare, query) >> key & 1;
  }

 private:
  Walk& walk_;
  const BlockMask& mask_;
  int at_, end_, turn_ = 0;
};

// How many a tensor has of its own along a dimension of `count`.
__host__ __device__ constexpr int64_t own_entries(int64_t stride, int64_t count) {
  return stride != 0 ? count : int64_t{1};
}

// 1-D grids: heads outside, tiles inside.
template <RowsOf kRowsOf>
__device__ __forceinline__ HeadTile block_tile(const AttentionShape& shape, const SeqLayout& seq, int64_t tiles,
                                               int tile_rows) {
  return head_tile<kRowsOf>(shape, seq, blockIdx.x / tiles, blockIdx.x % tiles, tile_rows);
}

}  // namespace xformers::cuda::simt
