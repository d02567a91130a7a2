// Decode in bf16 on AMX tiles, for up to 16 rows per stream (decode_streams-inl.h). K and V are tiles where they lie:
// what the processor does with a row is to load it.
//
//   per block of up to 4 x 16 keys:
//     all streams:  S^T [16 keys, rows] = K Q^T         tiles of 16 keys x 32 dims, as they lie
//     all streams:  bias, mask, online softmax: a vector holds 16 / kRows keys of each row; P [rows, 16 keys]
//     all streams:  O [rows, dims] += P V               tiles of 16 keys x 32 dims, as they lie
//
// The product wants pairs of keys side by side; rows of V hold pairs of dims instead. So each tile of V is multiplied
// twice, by P as the even and as the odd element of its pairs (the other one is 0), which gives the even and the odd
// dims of O. The tile unit has time for that, and no value is copied. But 0 times Inf is NaN: a task whose result is
// not finite is repeated on plain vectors, where an infinite value stays in its own dim.
//
// kRows is the number of rows of a stream rounded up to 4, 8 or 16: tiles of S and O have no more.
//
// Memory and computation overlap by asking for rows shortly before they are needed, for the first-level cache: a tile
// of K two streams ahead, the tiles of V one stream ahead, a few rows after each product. Asking far ahead for the
// second level is slower: the loads from there then wait for the same line buffers as the requests to memory.
#pragma once

#include "xformers/kernels/cpu/attention/decode-inl.h"
#include "xformers/kernels/cpu/attention/decode_softmax-inl.h"
#include "xformers/kernels/cpu/attention/decode_streams-inl.h"
#include "xformers/kernels/cpu/attention/key_tiles-inl.h"
#include "xformers/kernels/cpu/gemm/amx_tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

class DecodeTile : public DecodeStreams<BFloat16> {
  using T = BFloat16;
  using Base = DecodeStreams<T>;

  static constexpr ptrdiff_t kMaxRows = 16;  // of a stream

 public:
  static HWY_INLINE void begin() {}
  static HWY_INLINE void end() { _tile_release(); }

  HWY_INLINE DecodeTile(const AttentionFwdParams& params, ForwardPartials<float> partials)
      : Base(params, partials), tiles_(params, num_streams_), dim_(tiles_.dim()), dim_v_(tiles_.dim_v()) {}

  HWY_INLINE size_t lay_out(void* memory) {
    Arena arena(memory);
    memory_ = memory;
    const size_t plain_bytes = Decode<T>(p_, partials_).lay_out(nullptr);
    const ptrdiff_t scores = num_streams_ * kMaxTiles * kTileKeys * kMaxRows;
    rows_ = arena.take<Row>(num_streams_ * kMaxRows);
    states_ = arena.take<StreamState>(num_streams_);
    q_ = arena.take<uint32_t>(num_streams_ * dim_ / 2 * kMaxRows);
    out_ = arena.take<float>(num_streams_ * kMaxRows * dim_v_);
    scores_ = arena.take<float>(scores);
    even_ = arena.take<uint32_t>(scores);
    odd_ = arena.take<uint32_t>(scores);
    k_copy_ = arena.take<T>(2 * kTileKeys * dim_);
    v_copy_ = arena.take<T>(2 * kMaxTiles * kTileKeys * dim_v_);
    out_row_ = arena.take<float>(dim_v_);
    return arena.bytes() > plain_bytes ? arena.bytes() : plain_bytes;
  }

  HWY_NOINLINE void run(const ForwardTask& task) {
    per_stream_ = Base::rows_per_stream(task);
    if (per_stream_ <= 4) {
      run_rows<4>(task);
    } else if (per_stream_ <= 8) {
      run_rows<8>(task);
    } else {
      run_rows<16>(task);
    }
    if (!finite_) {
      Decode<T> plain(p_, partials_);
      plain.lay_out(memory_);
      plain.run(task);
    }
  }

 private:
  template <int kRows>
  HWY_INLINE void run_rows(const ForwardTask& task) {
    const Sequence sequence = sequence_at(p_.shape, p_.seq, task.sequence);
    const Band band(p_.band, sequence);
    Base::start_rows(task, num_streams_ * per_stream_);
    for (ptrdiff_t s = 0; s < num_streams_; ++s) start_stream<kRows>(s, sequence);

    KeyBlock next = tiles_.locate(sequence, task.keys.begin, task.keys.end);
    while (next.num_tiles > 0) {
      const KeyBlock block = next;
      next = tiles_.locate(sequence, block.keys.end, task.keys.end);
      scores<kRows>(block, sequence);
      for (ptrdiff_t s = 0; s < num_streams_; ++s) {
        softmax<kRows>(s, block, band, sequence);
        // The values of the first stream come next.
        for (ptrdiff_t t = 0; t < block.num_tiles; ++t) ahead<true>(block.tiles[t], 0, sequence).fetch(s, num_streams_);
      }
      values<kRows>(block, next, sequence);
    }

    finite_ = true;
    for (ptrdiff_t s = 0; s < num_streams_; ++s) {
      for (ptrdiff_t r = 0; r < per_stream_; ++r) {
        Row& row = rows_[s * per_stream_ + r];
        row.max = states_[s].max[r];
        row.sum = states_[s].template total<kRows>(r);
        join_dims<kRows>(s, r);
        Base::finish(s * per_stream_ + r, out_row_, task, sequence);
      }
    }
  }

  template <int kRows>
  HWY_INLINE void start_stream(ptrdiff_t s, const Sequence& sequence) {
    uint32_t* const pairs = q_ + s * (dim_ / 2) * kRows;  // [dims / 2, rows], two dims each
    std::memset(pairs, 0, dim_ / 2 * kRows * sizeof(uint32_t));
    for (ptrdiff_t r = 0; r < per_stream_; ++r) {
      const Row& row = rows_[s * per_stream_ + r];
      const T* q = row_of<const T>(p_.q, sequence.batch, sequence.q_begin + row.query, row.group, row.head);
      for (ptrdiff_t c = 0; c < p_.shape.head_dim; ++c)
        pairs[c / 2 * kRows + r] |= static_cast<uint32_t>(q[c].bits) << (c % 2 * 16);
    }
    zero_row(out_of<kRows>(s), kRows * dim_v_);
    states_[s].start();
  }

  template <bool kValues>
  HWY_INLINE Rows<T> tile_rows(const KeyTile& tile, ptrdiff_t s, const Sequence& sequence, T* copy) const {
    return tiles_.rows<kValues>(tile, sequence, rows_[s * per_stream_].group, rows_[s * per_stream_].head, copy);
  }
  template <bool kValues>
  HWY_INLINE RowsAhead ahead(const KeyTile& tile, ptrdiff_t s, const Sequence& sequence) const {
    return tiles_.ahead<kValues>(tile, sequence, rows_[s * per_stream_].group, rows_[s * per_stream_].head);
  }

  // ---- S^T = K Q^T ----
  template <int kRows>
  HWY_INLINE void scores(const KeyBlock& block, const Sequence& sequence) {
    configure_tiles<kRows>(false);
    for (ptrdiff_t t = 0; t < block.num_tiles; ++t) {
      const KeyTile& tile = block.tiles[t];
      const auto two_ahead = [&](ptrdiff_t s) HWY_ATTR {
        if (s + 2 < num_streams_) return ahead<false>(tile, s + 2, sequence);
        const ptrdiff_t wrapped = s + 2 - num_streams_;
        return t + 1 < block.num_tiles && wrapped < num_streams_ ? ahead<false>(block.tiles[t + 1], wrapped, sequence)
                                                                 : RowsAhead();
      };
      // A tile can't be loaded before stores to it have left the core, so copies are made one stream ahead.
      Rows<T> next = tile_rows<false>(tile, 0, sequence, k_copy_);
      const auto rows_of = [&](ptrdiff_t s) HWY_ATTR {
        const Rows<T> rows = next;
        if (s + 1 < num_streams_)
          next = tile_rows<false>(tile, s + 1, sequence, k_copy_ + (s + 1) % 2 * kTileKeys * dim_);
        return rows;
      };
      // Streams take turns with the accumulators, so that several products are under way.
      for (ptrdiff_t s = 0; s < num_streams_; s += 4) {
        stream_scores<kRows, 0>(rows_of(s), t, s, two_ahead(s));
        if (s + 1 < num_streams_) stream_scores<kRows, 1>(rows_of(s + 1), t, s + 1, two_ahead(s + 1));
        if (s + 2 < num_streams_) stream_scores<kRows, 2>(rows_of(s + 2), t, s + 2, two_ahead(s + 2));
        if (s + 3 < num_streams_) stream_scores<kRows, 3>(rows_of(s + 3), t, s + 3, two_ahead(s + 3));
      }
    }
  }

  template <int kRows, int kAcc>
  HWY_INLINE void stream_scores(const Rows<T>& k, ptrdiff_t t, ptrdiff_t s, const RowsAhead& ahead) {
    const uint32_t* q = q_ + s * (dim_ / 2) * kRows;
    zero_tile<kAcc>();
    for (ptrdiff_t c = 0; c < dim_; c += kTileDims, q += kTileDims / 2 * kRows) {
      _tile_loadd(6, k.data + c, k.stride * sizeof(T));
      _tile_loadd(4, q, kRows * sizeof(uint32_t));
      add_product<kAcc>();
      ahead.fetch(c / kTileDims, dim_ / kTileDims);
    }
    store_tile<kAcc>(scores_of<kRows>(s) + t * kTileKeys * kRows, kRows * sizeof(float));
  }

  // ---- modifiers, mask, softmax, P ----
  template <int kRows>
  HWY_INLINE void softmax(ptrdiff_t s, const KeyBlock& block, const Band& band, const Sequence& sequence) {
    const Row* const rows = rows_ + s * per_stream_;
    float* const scores = scores_of<kRows>(s);
    const ptrdiff_t count = block.keys.end - block.keys.begin;
    if (needs_scaling(p_)) {
      const ptrdiff_t numbers = block.num_tiles * kTileKeys * kRows;
      scale_scores(scores, numbers, static_cast<float>(p_.softmax_scale));
      Base::template modify_rows<kRows>(scores, numbers, rows, per_stream_, block.keys, sequence);
    }
    for (ptrdiff_t r = 0; r < per_stream_; ++r) {
      const Range seen = Base::visible(rows[r], block.keys, band);
      for (int64_t n = 0; n < seen.begin; ++n) scores[n * kRows + r] = -kInfinity<float>;
      for (int64_t n = seen.end; n < count; ++n) scores[n * kRows + r] = -kInfinity<float>;
    }
    for (ptrdiff_t n = count * kRows; n < block.num_tiles * kTileKeys * kRows; ++n) scores[n] = -kInfinity<float>;

    alignas(64) float factor[kMaxRows];
    const float to_exponent = score_factor<float>(p_) * kToExponent<float>;
    if (states_[s].template raise<kRows>(scores, block.num_tiles, to_exponent, factor)) rescale<kRows>(s, factor);
    states_[s].template weigh<kRows>(scores, block.num_tiles, to_exponent, even_ + probs_of<kRows>(s),
                                     odd_ + probs_of<kRows>(s));
  }

  template <int kRows>
  HWY_INLINE void rescale(ptrdiff_t s, const float* factor) {
    float* out = out_of<kRows>(s);
    for (ptrdiff_t i = 0; i < dim_v_ / 16; ++i) {
      for (ptrdiff_t r = 0; r < kRows; ++r, out += 16)
        _mm512_store_ps(out, _mm512_mul_ps(_mm512_load_ps(out), _mm512_set1_ps(factor[r])));
    }
  }

  // ---- O += P V ----
  template <int kRows>
  HWY_INLINE void values(const KeyBlock& block, const KeyBlock& next, const Sequence& sequence) {
    configure_tiles<kRows>(true);
    const ptrdiff_t groups = dim_v_ / kTileDims;
    Rows<T> v[2][kMaxTiles];
    const auto locate_values = [&](ptrdiff_t s) HWY_ATTR {
      for (ptrdiff_t t = 0; t < block.num_tiles; ++t) {
        T* const copy = v_copy_ + (s % 2 * kMaxTiles + t) * kTileKeys * dim_v_;
        v[s % 2][t] = tile_rows<true>(block.tiles[t], s, sequence, copy);
      }
    };
    if (num_streams_ > 0) locate_values(0);
    for (ptrdiff_t s = 0; s < num_streams_; ++s) {
      RowsAhead after[kMaxTiles];  // the next stream's; of the last one, the next block's first tile of K
      const bool last = s + 1 == num_streams_;
      if (!last) locate_values(s + 1);
      for (ptrdiff_t t = 0; t < block.num_tiles; ++t) {
        if (!last) after[t] = ahead<true>(block.tiles[t], s + 1, sequence);
        if (last && next.num_tiles > 0 && t < num_streams_) after[t] = ahead<false>(next.tiles[0], t, sequence);
      }
      ptrdiff_t g = 0;
      for (; g + 2 <= groups; g += 2) value_groups<kRows, 2>(s, g, v[s % 2], block.num_tiles, after);
      if (g < groups) value_groups<kRows, 1>(s, g, v[s % 2], block.num_tiles, after);
    }
  }

  // kGroups groups of 32 dims, even and odd ones in tiles of their own.
  template <int kRows, int kGroups>
  HWY_INLINE void value_groups(ptrdiff_t s, ptrdiff_t group, const Rows<T>* v, ptrdiff_t num_tiles,
                               const RowsAhead* after) {
    float* const out = out_of<kRows>(s) + group * kTileDims * kRows;
    const uint32_t *even = even_ + probs_of<kRows>(s), *odd = odd_ + probs_of<kRows>(s);
    _tile_loadd(0, out, 64);
    _tile_loadd(1, out + 16 * kRows, 64);
    if constexpr (kGroups > 1) {
      _tile_loadd(2, out + 32 * kRows, 64);
      _tile_loadd(3, out + 48 * kRows, 64);
    }
    for (ptrdiff_t t = 0; t < num_tiles; ++t, even += kTileKeys * kRows, odd += kTileKeys * kRows) {
      const T* const data = v[t].data + group * kTileDims;
      _tile_loadd(4, even, 64);
      _tile_loadd(5, odd, 64);
      _tile_loadd(6, data, v[t].stride * sizeof(T));
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 5, 6);
      if constexpr (kGroups > 1) {
        _tile_loadd(7, data + kTileDims, v[t].stride * sizeof(T));
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
      after[t].fetch(group / 2, (dim_v_ / kTileDims + 1) / 2);
    }
    _tile_stored(0, out, 64);
    _tile_stored(1, out + 16 * kRows, 64);
    if constexpr (kGroups > 1) {
      _tile_stored(2, out + 32 * kRows, 64);
      _tile_stored(3, out + 48 * kRows, 64);
    }
  }

  // Even and odd dims of a row of O side by side, into out_row_.
  template <int kRows>
  HWY_INLINE void join_dims(ptrdiff_t s, ptrdiff_t r) {
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (ptrdiff_t c = 0; c < dim_v_; c += kTileDims) {
      const float* const from = out_of<kRows>(s) + c * kRows + r * 16;
      const __m512 even = _mm512_load_ps(from), odd = _mm512_load_ps(from + 16 * kRows);
      constexpr int kInfOrNaN = 0x99;
      finite_ = finite_ && !(_mm512_fpclass_ps_mask(even, kInfOrNaN) | _mm512_fpclass_ps_mask(odd, kInfOrNaN));
      _mm512_store_ps(out_row_ + c, _mm512_permutex2var_ps(even, low, odd));
      _mm512_store_ps(out_row_ + c + 16, _mm512_permutex2var_ps(even, high, odd));
    }
  }

  // [dims / 32][even, odd][rows][16]
  template <int kRows>
  HWY_INLINE float* out_of(ptrdiff_t s) const {
    return out_ + s * kRows * dim_v_;
  }
  // [64 keys][rows]
  template <int kRows>
  HWY_INLINE float* scores_of(ptrdiff_t s) const {
    return scores_ + probs_of<kRows>(s);
  }
  // [tiles][rows][16 keys]
  template <int kRows>
  static HWY_INLINE ptrdiff_t probs_of(ptrdiff_t s) {
    return s * kMaxTiles * kTileKeys * kRows;
  }

  KeyTiles tiles_;
  ptrdiff_t dim_, dim_v_;  // to 32
  ptrdiff_t per_stream_;
  bool finite_;
  void* memory_;
  StreamState* states_;
  uint32_t *q_, *even_, *odd_;
  float *out_, *scores_, *out_row_;
  T *k_copy_, *v_copy_;
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
