// Packing 2:4 matrices in one pass over blocks of 64 x 64 values that stay in the first-level cache: load (with an
// activation), choose, pack, transpose, pack. Compiled once per vector width.
#include "xformers/kernels/cpu/base/blocks.h"
#include "xformers/kernels/cpu/sparse24/activation_row-inl.h"
#include "xformers/kernels/cpu/sparse24/block-inl.h"
#include "xformers/kernels/cpu/sparse24/sparse24_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {
namespace {

constexpr ptrdiff_t kBlocksPerTask = 16;  // side by side

// What of a matrix a block covers; less than all at the matrix's ends.
struct BlockPlace {
  int64_t row, col;
  ptrdiff_t rows, cols;
  HWY_INLINE bool whole() const { return rows == kSide && cols == kSide; }
};

// fn(place) on all blocks, in parallel.
template <class Fn>
void for_each_place(int64_t rows, int64_t cols, const Threads& threads, const Fn& fn) {
  const int64_t down = (rows + kSide - 1) / kSide, across = (cols + kSide - 1) / kSide;
  const int64_t chunks = (across + kBlocksPerTask - 1) / kBlocksPerTask;
  for_each_task(threads, down * chunks, [&](int64_t task, int) {
    const int64_t row = task / chunks * kSide, begin = task % chunks * kBlocksPerTask;
    const int64_t end = min_of(begin + kBlocksPerTask, across);
    for (int64_t block = begin; block < end; ++block) {
      fn(BlockPlace{row, block * kSide, min_of(kSide, rows - row), min_of(kSide, cols - block * kSide)});
    }
    finish_streams();
  });
}

HWY_NOINLINE void load_masks(const Sparse24Mask& mask, const BlockPlace& place, TileMasks& masks) {
  std::memset(masks, 0, sizeof masks);
  for (ptrdiff_t i = 0; i < (place.rows + 7) / 8; ++i) {
    for (ptrdiff_t j = 0; j < (place.cols + 7) / 8; ++j) {
      const uint16_t* cell = mask.cells + (place.row / 8 + i) * mask.row_stride + (place.col / 8 + j) * 4;
      std::memcpy(masks + 2 * i * kTiles + 2 * j, cell, 2 * sizeof(uint16_t));
      std::memcpy(masks + (2 * i + 1) * kTiles + 2 * j, cell + 2, 2 * sizeof(uint16_t));
    }
  }
}
HWY_NOINLINE void store_masks(const TileMasks& masks, const Sparse24Mask& mask, const BlockPlace& place) {
  for (ptrdiff_t i = 0; i < round_up(place.rows, 32) / 8; ++i) {
    uint16_t* cells = mask.cells + (place.row / 8 + i) * mask.row_stride + place.col / 8 * 4;
    for (ptrdiff_t j = 0; j < kSide / 8; ++j) {
      std::memcpy(cells + 4 * j, masks + 2 * i * kTiles + 2 * j, 2 * sizeof(uint16_t));
      std::memcpy(cells + 4 * j + 2, masks + (2 * i + 1) * kTiles + 2 * j, 2 * sizeof(uint16_t));
    }
  }
}
// Nothing is kept outside the matrix.
HWY_NOINLINE void clear_outside(const BlockPlace& place, TileMasks& masks) {
  for (ptrdiff_t i = 0; i < kTiles; ++i) {
    for (ptrdiff_t t = 0; t < kTiles; ++t) {
      const ptrdiff_t rows = max_of(0, min_of(4, place.rows - 4 * i)), cols = max_of(0, min_of(4, place.cols - 4 * t));
      const uint32_t row = (1u << cols) - 1;
      masks[i * kTiles + t] &= static_cast<uint16_t>((row * 0x1111u) & ((1u << (4 * rows)) - 1));
    }
  }
}

template <class Bits>
struct BlockRoom {
  alignas(64) Bits x[kSide * kSide], turned[kSide * kSide];
  alignas(64) uint16_t keys[kSide * kSide];
  alignas(64) TileMasks masks, turned_masks;
};

// ---- loading ----
// The block as rows of kSide with zeros around it.
template <class Bits>
HWY_INLINE void copy_block(const Rows& x, const BlockPlace& place, Bits* HWY_RESTRICT to) {
  if (!place.whole()) std::memset(to, 0, sizeof(Bits) * kSide * kSide);
  for (ptrdiff_t r = 0; r < place.rows; ++r) {
    std::memcpy(to + r * kSide, row_at<const Bits>(x, place.row + r) + place.col, sizeof(Bits) * place.cols);
  }
}
HWY_NOINLINE void activate_block(const Sparse24PackParams& p, const BlockPlace& place, void* block) {
  with_element(p.dtype, [&]<class T>(T) {
    std::memset(block, 0, sizeof(T) * kSide * kSide);
    for (ptrdiff_t r = 0; r < place.rows; ++r) {
      const T* x2 = p.x2.data ? row_at<const T>(p.x2, place.row + r) + place.col : nullptr;
      activated_row(p.activation, row_at<const T>(p.x, place.row + r) + place.col, x2, place.cols,
                    static_cast<T*>(block) + r * kSide);
    }
  });
}

// ---- choosing ----
HWY_INLINE void make_keys(const Sparse24PackParams& p, const uint16_t* x, ptrdiff_t stride, uint16_t* keys) {
  const uint16_t infinity = p.dtype == DType::kBFloat16 ? 0x7f80 : 0x7c00;
  for (ptrdiff_t r = 0; r < kSide; ++r) {
    keys_of_row(x + r * stride, infinity, p.rule == Sparse24Rule::kLargestAbs, kSide, keys + r * kSide);
  }
}
template <class Bits>
HWY_INLINE void make_keys(const Sparse24PackParams& p, const Bits* x, ptrdiff_t stride, uint16_t* keys) {
  using Element = typename BitsOf<sizeof(Bits)>::Element;
  const auto* values = reinterpret_cast<const Element*>(x);
  for (ptrdiff_t r = 0; r < kSide; r += 4) {
    for (ptrdiff_t c = 0; c < kSide; c += 4) {
      keys_of_tile(values + r * stride + c, stride, p.rule == Sparse24Rule::kLargestAbs, keys + r * kSide + c, kSide);
    }
  }
}

HWY_NOINLINE void choose(Sparse24Rule rule_name, const BlockPlace& place, uint16_t* keys, TileMasks& masks) {
  if (!place.whole()) {  // what is outside comes last
    for (ptrdiff_t r = 0; r < kSide; ++r) {
      const ptrdiff_t inside = r < place.rows ? place.cols : 0;
      std::memset(keys + r * kSide + inside, 0, sizeof(uint16_t) * (kSide - inside));
    }
  }
  const TileRule rule = tile_rule(rule_name);
  for (ptrdiff_t i = 0; i < kTiles; ++i) choose_tiles(keys + 4 * i * kSide, rule, masks + i * kTiles);
}

// ---- packing ----
HWY_NOINLINE void store_meta(const TileMasks& masks, const Sparse24Packed& to, int64_t row, int64_t col,
                             ptrdiff_t rows) {
  alignas(64) TileMasks indices;
  alignas(64) TileRows words;
  indices_of_masks(masks, indices);
  rows_of_tiles(indices, words);
  store_words(words, to, row, col / 16, rows / 32);
}
// `rows` of the block are the packed matrix's, padding included.
template <class Bits>
HWY_INLINE void pack_block(const Bits* x, ptrdiff_t stride, const TileMasks& masks, const Sparse24Packed& to,
                           int64_t row, int64_t col, ptrdiff_t rows, bool stream) {
  Bits* const values = static_cast<Bits*>(to.values) + row * to.value_stride + col / 2;
  pack_values(x, stride, masks, rows, values, to.value_stride, stream);
  store_meta(masks, to, row, col, rows);
}

HWY_INLINE bool can_stream(const Sparse24Packed& packed, int64_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(packed.values) | static_cast<uintptr_t>(packed.value_stride) * 2;
  return bytes >= kStreamBytes && at % 64 == 0;
}

template <class Bits>
void pack(const Sparse24PackParams& p, const Threads& threads) {
  const int64_t bytes = p.rows * p.cols / 2 * static_cast<int64_t>(sizeof(Bits));
  const bool stream = can_stream(p.packed, bytes), stream_t = can_stream(p.packed_t, bytes);
  const bool activated = p.activation != Activation::kNone || p.x2.data;
  for_each_place(p.rows, p.cols, threads, [&](const BlockPlace& place) {
    BlockRoom<Bits> room;
    const Bits* x = row_at<const Bits>(p.x, place.row) + place.col;
    ptrdiff_t stride = p.x.stride;
    const bool copied = activated || !place.whole();
    if (copied) {
      activated ? activate_block(p, place, room.x) : copy_block(p.x, place, room.x);
      x = room.x;
      stride = kSide;
    } else if (place.col + 2 * kSide <= p.cols) {  // the next block
      for (ptrdiff_t r = 0; r < kSide; ++r) {
        const auto* next = reinterpret_cast<const char*>(x + r * stride + kSide);
        for (size_t i = 0; i < sizeof(Bits) * kSide; i += 64) prefetch(next + i);
      }
    }
    if (p.mask_given) {
      load_masks(p.mask, place, room.masks);
    } else {
      make_keys(p, x, stride, room.keys);
      choose(p.rule, place, room.keys, room.masks);
    }
    if (!place.whole()) clear_outside(place, room.masks);
    if (!p.mask_given && p.mask.cells) store_masks(room.masks, p.mask, place);
    if (p.packed.values) {
      pack_block(x, stride, room.masks, p.packed, place.row, place.col, round_up(place.rows, 32), stream);
    }
    if (p.packed_t.values) {
      transpose_block(x, stride, room.turned);
      transpose_masks(room.masks, room.turned_masks);
      pack_block(static_cast<const Bits*>(room.turned), kSide, room.turned_masks, p.packed_t, place.col, place.row,
                 round_up(place.cols, 32), stream_t);
    }
  });
}

// ---- dense results ----
// visit(r, bits): for each row of the block its kept columns, 64 bits.
template <class Visit>
HWY_INLINE void for_each_kept_row(const TileMasks& masks, ptrdiff_t rows, const Visit& visit) {
  alignas(64) TileRows words;
  rows_of_tiles(masks, words);
  for (ptrdiff_t r = 0; r < rows; ++r) {
    uint64_t bits = 0;
    for (ptrdiff_t w = 0; w < 4; ++w) bits |= (words[r / 4 * 4 + w] >> (16 * (r % 4)) & 0xffff) << (16 * w);
    visit(r, bits);
  }
}

template <class T>
HWY_NOINLINE void dense(const Sparse24DenseParams& p, const Threads& threads) {
  using C = Compute<T>;
  const C mul0 = static_cast<C>(p.mul0), mul1 = static_cast<C>(p.mul1);
  for_each_place(p.rows, p.cols, threads, [&](const BlockPlace& place) {
    alignas(64) TileMasks masks;
    alignas(64) T turned[kSide * kSide];
    load_masks(p.mask, place, masks);
    const T* x = static_cast<const T*>(p.x) + place.row * p.row_stride + place.col * p.col_stride;
    ptrdiff_t stride = p.row_stride;
    if (p.col_stride != 1) {
      for (ptrdiff_t c = 0; c < place.cols; ++c) {
        for (ptrdiff_t r = 0; r < place.rows; ++r) turned[r * kSide + c] = x[c * p.col_stride + r * p.row_stride];
      }
      x = turned;
      stride = kSide;
    }
    for_each_kept_row(masks, place.rows, [&](ptrdiff_t r, uint64_t kept) HWY_ATTR {
      T* out = static_cast<T*>(p.out) + (place.row + r) * p.cols + place.col;
      const T* row = x + r * stride;
      for_each_vec<C>(place.cols, [&](ptrdiff_t i, auto n) HWY_ATTR {
        const Tag<C> d;
        const hn::RebindToUnsigned<Tag<C>> du;
        const auto v = load_n(row + i, n);
        const auto lanes_bits = hn::Set(du, static_cast<hn::TFromD<decltype(du)>>(kept >> i & 0xffff));
        const auto keeps = hn::RebindMask(d, hn::TestBit(lanes_bits, hn::Shl(hn::Set(du, 1), hn::Iota(du, 0))));
        const auto dropped = mul0 == 0 ? hn::Zero(d) : hn::Mul(v, hn::Set(d, mul0));
        store_n(hn::IfThenElse(keeps, hn::Mul(v, hn::Set(d, mul1)), dropped), out + i, n);
      });
    });
  });
}

template <class T>
HWY_NOINLINE void activation_backward(const Sparse24ActivationBwdParams& p, const Threads& threads) {
  for_each_place(p.rows, p.cols, threads, [&](const BlockPlace& place) {
    alignas(64) TileMasks masks;
    load_masks(p.mask, place, masks);
    for_each_kept_row(masks, place.rows, [&](ptrdiff_t r, uint64_t kept) HWY_ATTR {
      const auto at = [&](const Rows& rows) { return row_at<T>(rows, place.row + r) + place.col; };
      T* dx2 = p.x2.data ? at(p.dx2) : nullptr;
      activated_row_backward(p.activation, at(p.x), p.x2.data ? at(p.x2) : nullptr, at(p.dout), place.cols, at(p.dx),
                             dx2);
      for (ptrdiff_t c = 0; c < place.cols; ++c) {
        if (kept >> c & 1) continue;
        at(p.dx)[c] = T{};
        if (dx2) dx2[c] = T{};
      }
    });
  });
}

template <class Bits>
void unpack(const Sparse24UnpackParams& p, const Threads& threads) {
  for_each_block(threads, p.rows, p.cols * static_cast<int64_t>(sizeof(Bits)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Bits* values = static_cast<const Bits*>(p.packed.values) + row * p.packed.value_stride;
      Bits* out = row_at<Bits>(p.out, row);
      std::memset(out, 0, sizeof(Bits) * p.cols);
      for (int64_t col = 0; col < p.cols; col += 16) {
        const uint32_t word = p.packed.meta[p.packed.meta_word(row, col / 16)];
        for (int slot = 0; slot < 8; ++slot) {  // a slot without a value may name any column: only values are written
          const int64_t to = col + slot / 2 * 4 + (word >> (2 * slot) & 3);
          const Bits value = values[col / 2 + slot];
          if (value != 0 && to < p.cols) out[to] = value;
        }
      }
    }
  });
}

}  // namespace

void sparse24_pack(const Sparse24PackParams& p, const Threads& threads) {
  switch (size_of(p.dtype)) {
    case 2: return pack<uint16_t>(p, threads);
    case 4: return pack<uint32_t>(p, threads);
    default: return pack<uint64_t>(p, threads);
  }
}

void sparse24_dense(const Sparse24DenseParams& p, const Threads& threads) {
  with_element(p.dtype, [&]<class T>(T) { dense<T>(p, threads); });
}

void sparse24_activation_backward(const Sparse24ActivationBwdParams& p, const Threads& threads) {
  with_element(p.dtype, [&]<class T>(T) { activation_backward<T>(p, threads); });
}

void sparse24_unpack(const Sparse24UnpackParams& p, const Threads& threads) {
  switch (size_of(p.dtype)) {
    case 2: return unpack<uint16_t>(p, threads);
    case 4: return unpack<uint32_t>(p, threads);
    default: return unpack<uint64_t>(p, threads);
  }
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
