// Products of a packed 2:4 matrix a [m, k] and a dense matrix b [k, n]. Compiled once per vector width.
//
// Few columns: a streams through once. A lane is a slot: 2 L columns of b (in the compute type, a row per column of the
// result) are two vectors, of which the metadata picks one with the L slots; sums stay in vectors until the end. Rows
// of a go by pieces of kDepth columns, so that those of b stay in the first-level cache.
//
// Many columns: a lane is a column of the result. b is laid out in panels [k][kVecs vectors]; every kept value of a,
// broadcast, multiplies the row of the panel that its metadata names: half the multiplications of a dense product.
#include <cstdlib>

#include "xformers/kernels/cpu/base/blocks.h"
#include "xformers/kernels/cpu/base/scratch.h"
#include "xformers/kernels/cpu/sparse24/activation_row-inl.h"
#include "xformers/kernels/cpu/sparse24/sparse24_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {
namespace {

constexpr ptrdiff_t kGroup = 32;  // rows of a that a task takes, as the metadata lies

// ---- operands ----
// to [rows][padded] = b [rows, cols] in the compute type, zeros behind.
template <class T>
HWY_NOINLINE void widen_rows(const T* b, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t cols,
                             int64_t padded, Compute<T>* to) {
  for (int64_t r = 0; r < rows; ++r, to += padded) {
    if (col_stride == 1) {
      convert_row(b + r * row_stride, to, cols);
    } else {
      for (int64_t c = 0; c < cols; ++c) to[c] = to_compute(b[r * row_stride + c * col_stride]);
    }
    zero_row(to + cols, padded - cols);
  }
}

// ---- results ----
// acc [rows][stride], rows row ... of the result and columns col ...: bias, activation, one rounding.
template <class T>
HWY_NOINLINE void store_results(const Sparse24ProductParams& p, Compute<T>* acc, ptrdiff_t stride, int64_t row,
                                ptrdiff_t rows, int64_t col, ptrdiff_t cols, Compute<T>* turned) {
  using C = Compute<T>;
  const T* bias = static_cast<const T*>(p.bias);
  for (ptrdiff_t r = 0; r < rows; ++r) {
    C* const sums = acc + r * stride;
    if (bias && p.bias_per_row) {
      const auto one = hn::Set(Tag<C>(), static_cast<C>(to_compute(bias[row + r])));
      for_each_vec<C>(cols, [&](ptrdiff_t i, auto n) { store_n(hn::Add(load_n(sums + i, n), one), sums + i, n); });
    } else if (bias) {
      for_each_vec<C>(cols, [&](ptrdiff_t i, auto n) {
        store_n(hn::Add(load_n(sums + i, n), load_n(bias + col + i, n)), sums + i, n);
      });
    }
    if (p.activation != Activation::kNone) activate_in_place(p.activation, sums, cols);
  }
  const auto write = [&](const C* from, T* to, ptrdiff_t count) {
    for_each_vec<C>(count, [&](ptrdiff_t i, auto n) { store_n(load_n(from + i, n), to + i, n); });
  };
  T* const out = static_cast<T*>(p.out);
  if (!p.out_transposed) {
    for (ptrdiff_t r = 0; r < rows; ++r) write(acc + r * stride, out + (row + r) * p.out_stride + col, cols);
    return;
  }
  transpose(acc, stride, turned, kGroup, kGroup, round_up(cols, 16));
  for (ptrdiff_t c = 0; c < cols; ++c) write(turned + c * kGroup, out + (col + c) * p.out_stride + row, rows);
}

// ---- few columns ----
constexpr ptrdiff_t kDepth = 1024;
constexpr int kMostColumns = 8;

// Columns of 2 L neighbours that L slots name, from the 2 L bits of their metadata.
template <class C>
HWY_INLINE auto slot_columns(uint32_t meta) {
  const hn::RebindToUnsigned<Tag<C>> d;
  const auto lane = hn::Iota(d, 0);
  const auto two =
      hn::And(hn::Shr(hn::Set(d, static_cast<hn::TFromD<decltype(d)>>(meta)), hn::ShiftLeft<1>(lane)), hn::Set(d, 3));
  return hn::Or(two, hn::ShiftLeft<2>(hn::ShiftRight<1>(lane)));
}

// Of two vectors side by side the lanes that slots name.
#if XFORMERS_AVX512
using Slots = __m512i;
HWY_INLINE Slots to_slots(hn::Vec<hn::RebindToUnsigned<Tag<float>>> columns) { return columns.raw; }
HWY_INLINE Vec<float> pick(Vec<float> low, Vec<float> high, Slots slots) {
  return Vec<float>{_mm512_permutex2var_ps(low.raw, slots, high.raw)};
}
#else
struct Slots {
  decltype(hn::IndicesFromVec(Tag<float>(), hn::Zero(hn::RebindToSigned<Tag<float>>()))) lanes;
  hn::Mask<Tag<float>> high;
};
HWY_INLINE Slots to_slots(hn::Vec<hn::RebindToUnsigned<Tag<float>>> columns) {
  const hn::RebindToUnsigned<Tag<float>> d;
  const auto count = hn::Set(d, static_cast<uint32_t>(lanes<float>()));
  const auto lane = hn::And(columns, hn::Set(d, static_cast<uint32_t>(lanes<float>() - 1)));
  return {hn::IndicesFromVec(Tag<float>(), lane), hn::RebindMask(Tag<float>(), hn::TestBit(columns, count))};
}
HWY_INLINE Vec<float> pick(Vec<float> low, Vec<float> high, Slots slots) {
  return hn::IfThenElse(slots.high, hn::TableLookupLanes(high, slots.lanes), hn::TableLookupLanes(low, slots.lanes));
}
#endif

// kRows rows of a times kCols rows of b [kCols][b_stride]: added to sums [kRows][kCols] vectors. `depth` is a multiple
// of 32; meta [depth / 32][kGroup], the first of the rows.
template <class T, int kRows, int kCols>
HWY_NOINLINE void multiply_few(const T* rows, ptrdiff_t row_stride, const uint32_t* meta, const float* b,
                               ptrdiff_t b_stride, ptrdiff_t depth, float* sums) {
  const Tag<float> d;
  constexpr ptrdiff_t kLanes = lanes<float>(), kSteps = 16 / kLanes;
  Vec<float> acc[kRows][kCols];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) acc[r][c] = hn::LoadU(d, sums + (r * kCols + c) * kLanes);
  }
  for (ptrdiff_t k = 0; k < depth; k += 32, meta += kGroup) {
    for (ptrdiff_t step = 0; step < kSteps; ++step) {
      const ptrdiff_t at = k + step * 2 * kLanes;
      Vec<float> values[kRows];
      Slots slots[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const T* const row = rows + r * row_stride + at / 2;
        if (step == 0) prefetch(row + kDepth / 2);  // the next piece of the row
        values[r] = load_n(row, Whole());
        slots[r] = to_slots(slot_columns<float>(meta[r] >> (2 * kLanes * step)));
      }
#pragma GCC unroll 8
      for (int c = 0; c < kCols; ++c) {
        const auto low = hn::LoadU(d, b + c * b_stride + at), high = hn::LoadU(d, b + c * b_stride + at + kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) acc[r][c] = hn::MulAdd(values[r], pick(low, high, slots[r]), acc[r][c]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) hn::StoreU(acc[r][c], d, sums + (r * kCols + c) * kLanes);
  }
}

// The two words of 32 columns of each row of a group, as one: to[row].
HWY_INLINE void group_words(const Sparse24Packed& a, int64_t row, int64_t word, uint32_t* to) {
  const uint16_t* from = a.meta + a.meta_word(row, word);
  for (ptrdiff_t i = 0; i < 16; ++i, from += 4) {
    const ptrdiff_t r = i / 2 + i % 2 * 16;
    to[r] = from[0] | uint32_t{from[2]} << 16;
    to[r + 8] = from[1] | uint32_t{from[3]} << 16;
  }
}

template <class T>
HWY_NOINLINE void few_columns(const Sparse24ProductParams& p, const Threads& threads) {
  constexpr ptrdiff_t kLanes = lanes<float>();
  const ptrdiff_t padded = round_up(p.k, 64), cols = p.n <= 1 ? 1 : p.n <= 4 ? 4 : kMostColumns;
  const ptrdiff_t rows_at_a_time = cols > 4 ? 2 : 4;
  const auto multiply = cols == 1   ? multiply_few<T, 4, 1>
                        : cols == 4 ? multiply_few<T, 4, 4>
                                    : multiply_few<T, 2, kMostColumns>;
  Arena shared_sizes;
  shared_sizes.take<float>(cols * padded);
  const auto lay_out = [&](Arena& arena) {
    struct {
      float *sums, *results, *turned;
      uint32_t* meta;
    } own{arena.take<float>(kGroup * cols * kLanes), arena.take<float>(kGroup * 16), arena.take<float>(kGroup * 16),
          arena.take<uint32_t>(kDepth / 32 * kGroup)};
    return own;
  };
  Arena own_sizes;
  lay_out(own_sizes);
  const ThreadScratch scratch(shared_sizes.bytes() + own_sizes.bytes() * threads.num_threads);
  float* const b = reinterpret_cast<float*>(scratch.data());
  widen_rows(static_cast<const T*>(p.b), p.b_col, p.b_row, p.n, p.k, padded, b);
  zero_row(b + p.n * padded, (cols - p.n) * padded);
  for_each_task(threads, (p.m + kGroup - 1) / kGroup, [&](int64_t task, int worker) {
    Arena arena(scratch.data() + shared_sizes.bytes() + worker * own_sizes.bytes());
    const auto own = lay_out(arena);
    const int64_t row = task * kGroup;
    const T* const values = static_cast<const T*>(p.a.values) + row * p.a.value_stride;
    zero_row(own.sums, kGroup * cols * kLanes);
    for (ptrdiff_t k = 0; k < p.k; k += kDepth) {
      const ptrdiff_t depth = min_of(kDepth, round_up(p.k - k, 32));
      for (ptrdiff_t i = 0; i < depth / 32; ++i) group_words(p.a, row, (k + 32 * i) / 16, own.meta + i * kGroup);
      for (ptrdiff_t r = 0; r < kGroup; r += rows_at_a_time) {
        multiply(values + r * p.a.value_stride + k / 2, p.a.value_stride, own.meta + r, b + k, padded, depth,
                 own.sums + r * cols * kLanes);
      }
    }
    for (ptrdiff_t r = 0; r < kGroup; ++r) {
      for (ptrdiff_t c = 0; c < cols; ++c) {
        own.results[r * 16 + c] = sum_lanes<float>(hn::LoadU(Tag<float>(), own.sums + (r * cols + c) * kLanes));
      }
    }
    store_results<T>(p, own.results, 16, row, min_of(kGroup, p.m - row), 0, p.n, own.turned);
  });
}

// ---- many columns ----
constexpr int kVecs = 8;
constexpr ptrdiff_t kPanelDepth = 64;       // rows of a panel that stay in the first-level cache
constexpr ptrdiff_t kColumnsAtATime = 512;  // of b in the compute type

// Kept values of a row in kPanelDepth columns, and the rows of the panel that they multiply, in bytes.
template <class C>
struct Kept {
  alignas(64) C values[kPanelDepth / 2];
  alignas(64) hn::TFromD<hn::RebindToUnsigned<Tag<C>>> offsets[kPanelDepth / 2];
};

template <class T>
HWY_INLINE void decode_row(const T* values, const uint32_t* meta, Kept<Compute<T>>& kept) {
  using C = Compute<T>;
  const hn::RebindToUnsigned<Tag<C>> du;
  constexpr ptrdiff_t kLanes = lanes<C>();
  constexpr size_t kRowBytes = kVecs * kLanes * sizeof(C);
  for (ptrdiff_t slot = 0; slot < kPanelDepth / 2; slot += kLanes) {
    hn::Store(load_n(values + slot, Whole()), Tag<C>(), kept.values + slot);
    const auto columns = slot_columns<C>(meta[slot / 16 * kGroup] >> (2 * (slot % 16)));
    const auto absolute = hn::Add(columns, hn::Set(du, static_cast<hn::TFromD<decltype(du)>>(2 * slot)));
    hn::Store(hn::Mul(absolute, hn::Set(du, kRowBytes)), du, kept.offsets + slot);
  }
}

// acc [kVecs vectors] += the row times a panel.
template <class C>
HWY_INLINE void multiply_row(const Kept<C>& kept, const C* HWY_RESTRICT panel, C* HWY_RESTRICT sums) {
  const Tag<C> d;
  constexpr ptrdiff_t kLanes = lanes<C>();
  Vec<C> acc[kVecs];
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) acc[v] = hn::LoadU(d, sums + v * kLanes);
#pragma GCC unroll 2
  for (ptrdiff_t i = 0; i < kPanelDepth / 2; ++i) {
    const auto value = hn::Set(d, kept.values[i]);
    const C* row = reinterpret_cast<const C*>(reinterpret_cast<const char*>(panel) + kept.offsets[i]);
    // One register and constants behind it: sums of registers would cost the multiplications another micro-operation.
    asm("" : "+r"(row));
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) acc[v] = hn::MulAdd(value, hn::LoadU(d, row + v * kLanes), acc[v]);
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) hn::StoreU(acc[v], d, sums + v * kLanes);
}

template <class T>
HWY_NOINLINE void many_columns(const Sparse24ProductParams& p, const Threads& threads) {
  using C = Compute<T>;
  constexpr ptrdiff_t kWidth = kVecs * lanes<C>();  // of a panel
  const ptrdiff_t padded = round_up(p.k, kPanelDepth), panels = kColumnsAtATime / kWidth;
  const auto lay_out = [](Arena& arena) {
    struct {
      C *sums, *turned;
      uint32_t* meta;
    } own{arena.take<C>(kGroup * kWidth), arena.take<C>(kGroup * kWidth),
          arena.take<uint32_t>(kPanelDepth / 32 * kGroup)};
    return own;
  };
  Arena sizes;
  lay_out(sizes);
  Arena shared_sizes;
  shared_sizes.take<C>(panels * padded * kWidth);
  const ThreadScratch scratch(shared_sizes.bytes() + sizes.bytes() * threads.num_threads);
  C* const b = reinterpret_cast<C*>(scratch.data());
  for (int64_t first = 0; first < p.n; first += kColumnsAtATime) {
    const int64_t cols = min_of(kColumnsAtATime, p.n - first), used = (cols + kWidth - 1) / kWidth;
    // Panels, a piece of their rows at a time.
    for_each_task(threads, used * (padded / kPanelDepth), [&](int64_t task, int) {
      const int64_t panel = task % used, k = task / used * kPanelDepth, col = first + panel * kWidth;
      const int64_t width = min_of(kWidth, p.n - col), rows = min_of(kPanelDepth, p.k - k);
      C* const to = b + (panel * padded + k) * kWidth;
      const T* from = static_cast<const T*>(p.b) + col * p.b_col;
      if (p.b_col == 1) {
        widen_rows(from + k * p.b_row, p.b_row, 1, rows, width, kWidth, to);
      } else {  // its columns are contiguous
        alignas(64) C columns[kWidth * kPanelDepth];
        widen_rows(from + k, p.b_col, 1, width, rows, kPanelDepth, columns);
        zero_row(columns + width * kPanelDepth, (kWidth - width) * kPanelDepth);
        transpose(columns, kPanelDepth, to, kWidth, kWidth, kPanelDepth);
      }
      if (rows < kPanelDepth) zero_row(to + rows * kWidth, (kPanelDepth - rows) * kWidth);
    });
    for_each_task(threads, (p.m + kGroup - 1) / kGroup * used, [&](int64_t task, int worker) {
      Arena arena(scratch.data() + shared_sizes.bytes() + worker * sizes.bytes());
      const auto own = lay_out(arena);
      const int64_t panel = task % used, row = task / used * kGroup, col = first + panel * kWidth;
      const T* const values = static_cast<const T*>(p.a.values) + row * p.a.value_stride;
      zero_row(own.sums, kGroup * kWidth);
      for (ptrdiff_t k = 0; k < padded; k += kPanelDepth) {
        for (ptrdiff_t i = 0; i < kPanelDepth / 32; ++i) {
          group_words(p.a, row, (k + 32 * i) / 16, own.meta + i * kGroup);
        }
        const C* const rows = b + (panel * padded + k) * kWidth;
        for (ptrdiff_t r = 0; r < kGroup; ++r) {
          Kept<C> kept;
          decode_row(values + r * p.a.value_stride + k / 2, own.meta + r, kept);
          multiply_row(kept, rows, own.sums + r * kWidth);
        }
      }
      store_results<T>(p, own.sums, kWidth, row, min_of(kGroup, p.m - row), col, min_of(kWidth, p.n - col), own.turned);
    });
  }
}

template <class T>
void multiply(const Sparse24ProductParams& p, const Threads& threads) {
  if constexpr (sizeof(T) == 2) {
    if (p.n <= kMostColumns) return few_columns<T>(p, threads);
  }
  many_columns<T>(p, threads);
}

}  // namespace

void sparse24_product(const Sparse24ProductParams& p, const Threads& threads) {
  with_element(p.dtype, [&]<class T>(T) { multiply<T>(p, threads); });
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
