// Block-sparse products over the matrix product of attention (cpu/gemm), and softmax over rows that lie in pieces, one
// per block. A task is one row of blocks (of dsd: some columns of it). Compiled once per instruction set.
#include <type_traits>

#include "xformers/kernels/cpu/base/blocks.h"
#include "xformers/kernels/cpu/base/exp-inl.h"
#include "xformers/kernels/cpu/base/scratch.h"
#include "xformers/kernels/cpu/blocksparse/blocksparse_cpu.h"
#include "xformers/kernels/cpu/gemm/gemm_fma-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {
namespace {

template <class T>
struct Matrix {
  const T* data;
  ptrdiff_t row_stride, column_stride;  // one of them 1

  const T* at(ptrdiff_t row, ptrdiff_t column) const { return data + row * row_stride + column * column_stride; }
};

template <class T>
Matrix<T> matrix_of(const HeadMatrices& m, int64_t batch, int64_t head) {
  return {static_cast<const T*>(m.data) + batch * m.batch_stride + head * m.head_stride, m.row_stride, m.column_stride};
}

// A left operand [rows, depth] from m: as it lies where its elements are of the compute type.
template <class T>
typename FmaGemm<T>::Left left_of(const Matrix<T>& m, ptrdiff_t rows, ptrdiff_t depth, void* room) {
  if constexpr (std::is_same_v<T, Compute<T>>) {
    return {m.data, m.row_stride, m.column_stride};
  } else if (m.column_stride == 1) {
    return FmaGemm<T>::pack_left(room, m.data, m.row_stride, rows, depth);
  } else {
    return FmaGemm<T>::pack_left_transposed(room, m.data, m.column_stride, depth, rows);
  }
}

// A right operand [depth, columns] from m. Transposed ones have a multiple of 16 columns.
template <class T>
typename FmaGemm<T>::Right right_of(const Matrix<T>& m, ptrdiff_t depth, ptrdiff_t columns, void* room) {
  if (m.column_stride != 1) return FmaGemm<T>::pack_right_transposed(room, m.data, m.column_stride, columns, depth);
  if constexpr (std::is_same_v<T, Compute<T>>) {
    if (columns % FmaGemm<T>::kLanes == 0) return {m.data, m.row_stride};
  }
  return FmaGemm<T>::pack_right(room, m.data, m.row_stride, depth, columns);
}

// Room for the operands and the sums of one worker.
template <class T>
struct Room {
  using C = Compute<T>;
  char *left, *right;
  C* sums;

  static size_t bytes(ptrdiff_t rows, ptrdiff_t depth, ptrdiff_t columns) {
    Arena arena;
    Room::take(arena, rows, depth, columns);
    return arena.bytes();
  }
  static Room take(Arena& arena, ptrdiff_t rows, ptrdiff_t depth, ptrdiff_t columns) {
    char* const left = arena.take<char>(FmaGemm<T>::left_size(rows, depth));
    char* const right = arena.take<char>(FmaGemm<T>::right_size(depth, columns));
    return {left, right, arena.take<C>(rows * round_up(columns, 16))};
  }
};

// sums [rows, columns rounded up to a vector] (+)= left * right.
template <class T>
void multiply(const Room<T>& room, typename FmaGemm<T>::Left left, const Matrix<T>& right, ptrdiff_t rows,
              ptrdiff_t depth, ptrdiff_t columns, bool accumulate) {
  const ptrdiff_t padded = round_up(columns, FmaGemm<T>::kLanes);
  FmaGemm<T>::multiply(room.sums, padded, left, right_of(right, depth, columns, room.right), rows, padded, depth,
                       accumulate);
}

constexpr int64_t kDepth = 256, kWidth = 128;  // of what is multiplied at once

template <class T>
void sdd(const BlockSddParams& p, const Threads& threads) {
  const BlockLayout& l = p.layout;
  const int64_t rows = l.heads * l.block_rows, block = l.block, depth_at_once = min_of(p.depth, kDepth);
  const size_t room_bytes = Room<T>::bytes(block, depth_at_once, block);
  const ThreadScratch scratch(room_bytes * threads.num_threads);
  for_each_task(threads, p.batch * l.nnz, [&](int64_t task, int worker) {
    const int64_t batch = task / l.nnz, i = task % l.nnz;
    int64_t low = 0, high = rows;  // the row r of block i: row_offsets[r] <= i < row_offsets[r + 1]
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (l.row_offsets[middle] <= i ? low : high) = middle;
    }
    Arena arena(scratch.data() + worker * room_bytes);
    const Room<T> room = Room<T>::take(arena, block, depth_at_once, block);
    const int64_t head = low / l.block_rows, first_row = low % l.block_rows * block;
    const int64_t first_column = l.column_indices[i] * block;
    const Matrix<T> a = matrix_of<T>(p.a, batch, head), b = matrix_of<T>(p.b, batch, head);
    for (int64_t k = 0; k == 0 || k < p.depth; k += kDepth) {
      const int64_t depth = min_of(kDepth, p.depth - k);
      const Matrix<T> left{a.at(first_row, k), a.row_stride, a.column_stride};
      const Matrix<T> right{b.at(k, first_column), b.row_stride, b.column_stride};
      multiply(room, left_of(left, block, depth, room.left), right, block, depth, block, k > 0);
    }
    store_row(static_cast<const Compute<T>*>(room.sums), Compute<T>(1),
              static_cast<T*>(p.out) + (batch * l.nnz + i) * block * block, block * block);
  });
}

template <class T>
void dsd(const BlockDsdParams& p, const Threads& threads) {
  using C = Compute<T>;
  const BlockLayout& l = p.layout;
  const int64_t rows = l.heads * l.block_rows, block = l.block, width_at_once = min_of(p.width, kWidth);
  const int64_t panels = (p.width + kWidth - 1) / kWidth;
  const size_t room_bytes = Room<T>::bytes(block, block, width_at_once);
  const ThreadScratch scratch(room_bytes * threads.num_threads);
  for_each_task(threads, p.batch * rows * panels, [&](int64_t task, int worker) {
    const int64_t panel = task % panels, row = task / panels % rows, batch = task / panels / rows;
    const int64_t head = row / l.block_rows, first = panel * kWidth, width = min_of(kWidth, p.width - first);
    Arena arena(scratch.data() + worker * room_bytes);
    const Room<T> room = Room<T>::take(arena, block, block, width_at_once);
    const Matrix<T> b = matrix_of<T>(p.b, batch, head);
    T* const out = static_cast<T*>(p.out) + ((batch * rows + row) * block) * p.width + first;
    const int64_t begin = l.row_offsets[row], end = l.row_offsets[row + 1];
    const ptrdiff_t padded = round_up(width, FmaGemm<T>::kLanes);
    if (begin == end) zero_row(room.sums, block * padded);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t place = batch * l.nnz + (l.places ? l.places[i] : i);
      const T* const values = static_cast<const T*>(p.values) + place * block * block;
      const Matrix<T> left{values, p.transposed_blocks ? 1 : block, p.transposed_blocks ? block : 1};
      const Matrix<T> right{b.at(l.column_indices[i] * block, first), b.row_stride, b.column_stride};
      multiply(room, left_of(left, block, block, room.left), right, block, block, width, i > begin);
    }
    for (int64_t r = 0; r < block; ++r) {
      store_row(static_cast<const C*>(room.sums) + r * padded, C(1), out + r * p.width, width);
    }
  });
}

// ---- softmax ----
// One row of elements: `row` of its head, in the blocks [begin, end).
struct ElementRow {
  int64_t batch, head, row, begin, end;
  ptrdiff_t in_block;  // of each block's first element
};

// fn(row, worker) for all rows of elements, in parallel by rows of blocks.
template <class Fn>
void for_each_element_row(const BlockLayout& l, int64_t batches, const Threads& threads, const Fn& fn) {
  const int64_t rows = l.heads * l.block_rows;
  for_each_task(threads, batches * rows, [&](int64_t task, int worker) {
    const int64_t batch = task / rows, row = task % rows, first = row % l.block_rows * l.block;
    const int64_t begin = l.row_offsets[row], end = l.row_offsets[row + 1];
    for (int64_t r = 0; r < l.block && begin < end; ++r) {
      fn(ElementRow{batch, row / l.block_rows, first + r, begin, end, r * l.block}, worker);
    }
  });
}

// scale * x + bias of one vector of a block, -inf where hidden; columns from `column` on.
template <class T>
struct Scores {
  using C = Compute<T>;
  const BlockSoftmaxFwdParams& p;
  const ElementRow& row;

  HWY_INLINE Vec<C> at(const T* x, const T* bias, int64_t column) const {
    const Tag<C> d;
    auto score = hn::Mul(load_vec(x), hn::Set(d, static_cast<C>(p.scale)));
    if (bias) {
      if (p.bias.column_stride == 1) {
        score = hn::Add(score, load_vec(bias));
      } else {
        alignas(64) T some[lanes<C>()];
        for (ptrdiff_t i = 0; i < lanes<C>(); ++i) some[i] = bias[i * p.bias.column_stride];
        score = hn::Add(score, load_vec(some));
      }
    }
    if (!p.causal || column + lanes<C>() - 1 <= row.row) return score;
    const auto visible = hn::FirstN(d, static_cast<size_t>(max_of(row.row - column + 1, 0)));
    return hn::IfThenElse(visible, score, hn::Set(d, static_cast<C>(-__builtin_inf())));
  }
};

template <class T>
void softmax_rows(const BlockSoftmaxFwdParams& p, const Threads& threads) {
  using C = Compute<T>;
  const Tag<C> d;
  const BlockLayout& l = p.layout;
  const ptrdiff_t block = l.block;
  int64_t most = 0;
  for (int64_t r = 0; r < l.heads * l.block_rows; ++r) most = max_of(most, l.row_offsets[r + 1] - l.row_offsets[r]);
  Arena sizes;
  sizes.take<C>(most * block);
  const size_t row_bytes = sizes.bytes();
  const ThreadScratch scratch(row_bytes * threads.num_threads);
  for_each_element_row(l, p.batch, threads, [&](const ElementRow& row, int worker) {
    C* const scores = reinterpret_cast<C*>(scratch.data() + worker * row_bytes);
    const Scores<T> score{p, row};
    const ptrdiff_t offset = row.batch * l.nnz * block * block + row.in_block;
    const Matrix<T> bias = matrix_of<T>(p.bias, row.batch, row.head);
    auto highest = hn::Set(d, static_cast<C>(-__builtin_inf()));
    for (int64_t i = row.begin; i < row.end; ++i) {
      const T* const x = static_cast<const T*>(p.values) + offset + i * block * block;
      const int64_t column = l.column_indices[i] * block;
      for (ptrdiff_t k = 0; k < block; k += lanes<C>()) {
        const auto s = score.at(x + k, p.bias.data ? bias.at(row.row, column + k) : nullptr, column + k);
        hn::StoreU(s, d, scores + (i - row.begin) * block + k);
        highest = hn::Max(highest, s);
      }
    }
    // A row that sees nothing has -inf here; its powers are 0, not NaN, if it counts as 0.
    auto top = hn::MaxOfLanes(d, highest);
    top = hn::IfThenZeroElse(hn::Eq(top, hn::Set(d, static_cast<C>(-__builtin_inf()))), top);
    double sum = 0;
    for (int64_t i = 0; i < row.end - row.begin; ++i) {
      auto some = hn::Zero(d);
      for (ptrdiff_t k = i * block; k < (i + 1) * block; k += lanes<C>()) {
        const auto power = exp_below_zero<T>(hn::Sub(hn::LoadU(d, scores + k), top));
        hn::StoreU(power, d, scores + k);
        some = hn::Add(some, power);
      }
      sum += static_cast<double>(sum_lanes<C>(some));
    }
    const C factor = sum == 0 ? C(0) : static_cast<C>(1 / sum);
    for (int64_t i = row.begin; i < row.end; ++i) {
      store_row(static_cast<const C*>(scores) + (i - row.begin) * block, factor,
                static_cast<T*>(p.out) + offset + i * block * block, block);
    }
  });
}

template <class T>
void softmax_gradients(const BlockSoftmaxBwdParams& p, const Threads& threads) {
  using C = Compute<T>;
  const Tag<C> d;
  const BlockLayout& l = p.layout;
  const ptrdiff_t block = l.block;
  for_each_element_row(l, p.batch, threads, [&](const ElementRow& row, int) {
    const ptrdiff_t offset = row.batch * l.nnz * block * block + row.in_block;
    double sum = 0;
    for (int64_t i = row.begin; i < row.end; ++i) {
      const ptrdiff_t at = offset + i * block * block;
      auto some = hn::Zero(d);
      for (ptrdiff_t k = 0; k < block; k += lanes<C>()) {
        some = hn::MulAdd(load_vec(static_cast<const T*>(p.dout) + at + k),
                          load_vec(static_cast<const T*>(p.out) + at + k), some);
      }
      sum += static_cast<double>(sum_lanes<C>(some));
    }
    const auto total = hn::Set(d, static_cast<C>(sum)), scale = hn::Set(d, static_cast<C>(p.scale));
    for (int64_t i = row.begin; i < row.end; ++i) {
      const ptrdiff_t at = offset + i * block * block;
      for (ptrdiff_t k = 0; k < block; k += lanes<C>()) {
        const auto rest = hn::Sub(load_vec(static_cast<const T*>(p.dout) + at + k), total);
        store_vec(hn::Mul(hn::Mul(load_vec(static_cast<const T*>(p.out) + at + k), scale), rest),
                  static_cast<T*>(p.dx) + at + k);
      }
    }
  });
}

}  // namespace

void block_sdd(const BlockSddParams& p, const Threads& threads) {
  with_element(p.dtype, [&]<class T>(T) { sdd<T>(p, threads); });
}

void block_dsd(const BlockDsdParams& p, const Threads& threads) {
  with_element(p.dtype, [&]<class T>(T) { dsd<T>(p, threads); });
}

void block_softmax_forward(const BlockSoftmaxFwdParams& p, const Threads& threads) {
  with_element(p.dtype, [&]<class T>(T) { softmax_rows<T>(p, threads); });
}

void block_softmax_backward(const BlockSoftmaxBwdParams& p, const Threads& threads) {
  with_element(p.dtype, [&]<class T>(T) { softmax_gradients<T>(p, threads); });
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
