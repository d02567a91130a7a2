// Gathering, scattering and adding rows. Compiled once per instruction set.
#include "xformers/kernels/cpu/base/column_sums-inl.h"
#include "xformers/kernels/cpu/base/rows-inl.h"
#include "xformers/kernels/cpu/indexing/indexing_cpu.h"
#include "xformers/kernels/cpu/indexing/row_groups.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {
namespace {

// Wide rows are cut into pieces, so that few of them still occupy all threads.
constexpr int64_t kPiece = 16384;
int64_t pieces_of(int64_t width) { return (width + kPiece - 1) / kPiece; }

// fn(item, begin, end): columns [begin, end) of one of `count` items, in parallel.
template <class Fn>
void for_each_piece(const Threads& threads, int64_t count, int64_t width, int64_t bytes_per_element, const Fn& fn) {
  const int64_t pieces = pieces_of(width);
  const int64_t piece_bytes = (width < kPiece ? width : kPiece) * bytes_per_element;
  for_each_block(threads, count * pieces, piece_bytes, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i % pieces * kPiece, end = begin + kPiece;
      fn(i / pieces, begin, end < width ? end : width);
    }
    finish_streams();
  });
}

template <class T>
const T* row_of(const RowsTensor& tensor, int64_t row, int64_t middle) {
  return static_cast<const T*>(tensor.data) + row * tensor.row_stride + middle * tensor.middle_stride;
}
template <class T>
T* mutable_row_of(const RowsTensor& tensor, int64_t row, int64_t middle) {
  return static_cast<T*>(tensor.data) + row * tensor.row_stride + middle * tensor.middle_stride;
}

}  // namespace

void gather(DType dtype, const RowSelection& s, const Threads& threads) {
  const int64_t bytes = static_cast<int64_t>(size_of(dtype)), row_bytes = s.width * bytes;
  const bool stream = s.num_rows * row_bytes >= kStreamBytes;
  for_each_piece(threads, s.num_rows, s.width, 2 * bytes, [&](int64_t place, int64_t begin, int64_t end) {
    const char* from = static_cast<const char*>(s.source) + (s.index[place] * s.row_stride + begin) * bytes;
    char* to = static_cast<char*>(s.packed) + place * row_bytes + begin * bytes;
    const size_t size = static_cast<size_t>((end - begin) * bytes);
    if (stream) {
      stream_bytes(to, from, size);
    } else {
      std::memcpy(to, from, size);
    }
  });
}

void scatter_sum(DType dtype, const RowSelection& s, const RowGroups& groups, const Threads& threads) {
  with_element(dtype, [&]<class T>(T) {
    using C = Compute<T>;
    const T* packed = static_cast<const T*>(s.packed);
    const auto write = [&]<bool kStream>() {
      for_each_piece(threads, s.source_rows, s.width, 2 * sizeof(T), [&](int64_t row, int64_t begin, int64_t end) {
        T* to = static_cast<T*>(s.source) + row * s.row_stride + begin;
        const int64_t first = groups.begin[row], last = groups.begin[row + 1];
        // What the next row with places takes first.
        const int64_t next = last < s.num_rows ? groups.places[last] * s.width + begin : 0;
        map_row<kStream>(to, end - begin, [&](ptrdiff_t i, auto n) {
          if constexpr (kStream) prefetch(packed + next + i);
          auto sum = hn::Zero(Tag<C>());
          for (int64_t g = first; g < last; ++g) {
            sum = hn::Add(sum, load_n(packed + groups.places[g] * s.width + begin + i, n));
          }
          return sum;
        });
      });
    };
    if (s.source_rows * s.width * static_cast<int64_t>(sizeof(T)) >= kStreamBytes) {
      write.template operator()<true>();
    } else {
      write.template operator()<false>();
    }
  });
}

void scaled_index_add(const ScaledIndexAddParams& p, const RowGroups& groups, const Threads& threads) {
  with_element(p.dtype, [&]<class T>(T) {
    using C = Compute<T>;
    const auto alpha = hn::Set(Tag<C>(), static_cast<C>(p.alpha));
    const C* scaling = static_cast<const C*>(p.scaling);
    // Each place of the index belongs to the first place of its row, which adds all of them.
    const int64_t items = p.num_indices * p.middle;
    for_each_piece(threads, items, p.width, 3 * sizeof(T), [&](int64_t item, int64_t begin, int64_t end) {
      const int64_t middle = item % p.middle, place = item / p.middle, row = p.index[place];
      const int64_t first = groups.begin[row], last = groups.begin[row + 1];
      if (groups.places[first] != place) return;
      T* const to = mutable_row_of<T>(p.input, row, middle) + begin;
      T* const outs[1] = {to};
      const int64_t next = min_of(item + 1, items - 1), next_middle = next % p.middle, next_place = next / p.middle;
      const T* next_to = row_of<T>(p.input, p.index[next_place], next_middle) + begin;
      const T* next_source = row_of<T>(p.source, next_place, next_middle) + begin;
      map_rows(/*stream=*/false, outs, end - begin, [&](ptrdiff_t i, auto n, Vec<C>* results) XFORMERS_INLINED {
        prefetch(next_to + i);
        prefetch(next_source + i);
        const auto factor = scaling ? hn::Mul(alpha, load_n(scaling + begin + i, n)) : alpha;
        auto sum = load_n(to + i, n);
        for (int64_t g = first; g < last; ++g) {
          sum = hn::MulAdd(factor, load_n(row_of<T>(p.source, groups.places[g], middle) + begin + i, n), sum);
        }
        results[0] = sum;
      });
    });
  });
}

namespace {

// dsource alone: alpha * scaling * dout[index].
template <class T, bool kStream>
void source_gradient(const ScaledIndexAddBwdParams& p, const Threads& threads) {
  using C = Compute<T>;
  const auto alpha = hn::Set(Tag<C>(), static_cast<C>(p.alpha));
  const C* scaling = static_cast<const C*>(p.scaling);
  const int64_t items = p.num_indices * p.middle;
  for_each_piece(threads, items, p.width, 2 * sizeof(T), [&](int64_t item, int64_t begin, int64_t end) {
    const int64_t middle = item % p.middle, place = item / p.middle, next = min_of(item + 1, items - 1);
    const T* dout = row_of<T>(p.dout, p.index[place], middle) + begin;
    const T* next_dout = row_of<T>(p.dout, p.index[next / p.middle], next % p.middle) + begin;
    T* dsource = mutable_row_of<T>(p.dsource, place, middle) + begin;
    map_row<kStream>(dsource, end - begin, [&](ptrdiff_t i, auto n) {
      if constexpr (kStream) prefetch(next_dout + i);
      const auto factor = scaling ? hn::Mul(alpha, load_n(scaling + begin + i, n)) : alpha;
      return hn::Mul(factor, load_n(dout + i, n));
    });
  });
}

// dscaling and, in the same pass where it is wanted, dsource.
template <class T, bool kStream>
void both_gradients(const ScaledIndexAddBwdParams& p, const Threads& threads) {
  using C = Compute<T>;
  const auto alpha = hn::Set(Tag<C>(), static_cast<C>(p.alpha));
  const C* scaling = static_cast<const C*>(p.scaling);
  C* const results[1] = {static_cast<C*>(p.dscaling)};
  sum_columns<C, 1, 1>(
      threads, p.num_indices * p.middle, p.width, results, [&](int64_t item, PartSums<C, 1>& sums, auto) {
        const int64_t middle = item % p.middle, place = item / p.middle, next = min_of(item + 1, sums.end - 1);
        const T* dout = row_of<T>(p.dout, p.index[place], middle);
        const T* source = row_of<T>(p.source, place, middle);
        const T* next_dout = row_of<T>(p.dout, p.index[next / p.middle], next % p.middle);
        const T* next_source = row_of<T>(p.source, next / p.middle, next % p.middle);
        C* sum = sums.array(0);
        const auto add = [&](ptrdiff_t i, auto n, Vec<C> gradient) {  // alpha * dout
          store_n(hn::MulAdd(gradient, load_n(source + i, n), load_n(sum + i, n)), sum + i, n);
        };
        if (p.dsource.data) {
          map_row<kStream>(mutable_row_of<T>(p.dsource, place, middle), p.width, [&](ptrdiff_t i, auto n) {
            if constexpr (kStream) {
              prefetch(next_dout + i);
              prefetch(next_source + i);
            }
            const auto gradient = hn::Mul(alpha, load_n(dout + i, n));
            add(i, n, gradient);
            return scaling ? hn::Mul(load_n(scaling + i, n), gradient) : gradient;
          });
        } else {
          for_each_vec<C>(p.width, [&](ptrdiff_t i, auto n) { add(i, n, hn::Mul(alpha, load_n(dout + i, n))); });
        }
      });
}

}  // namespace

void scaled_index_add_backward(const ScaledIndexAddBwdParams& p, const Threads& threads) {
  with_element(p.dtype, [&]<class T>(T) {
    const bool stream =
        p.num_indices * p.middle * p.width * static_cast<int64_t>(sizeof(T)) >= kStreamBytes && p.dsource.data;
    if (p.dscaling) {
      stream ? both_gradients<T, true>(p, threads) : both_gradients<T, false>(p, threads);
    } else if (p.dsource.data) {
      stream ? source_gradient<T, true>(p, threads) : source_gradient<T, false>(p, threads);
    }
  });
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
