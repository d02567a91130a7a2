// Decode on matrix tiles, for up to 16 rows per stream (decode_streams-inl.h): the rows of K are read as tiles where
// they lie, so that the processor does little more than load.
//
//   per stream and 64 keys:  S^T [keys, 16 rows] = K Q^T
//                            bias, mask, online softmax: a vector holds one key's 16 rows
//                            P [16 rows, keys]: transposed in registers;  V: pairs of keys interleaved
//                            O [16 rows, head_dim_v] += P V
//
// No prefetching: blocks are read fast enough for the processor's own (measured: 18 GB/s a core without, 15 with).
#pragma once

#include "xformers/kernels/cpu/attention/decode_streams-inl.h"
#include "xformers/kernels/cpu/gemm/gemm_bf16x-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

inline constexpr ptrdiff_t kTileKeys = 64;
inline constexpr ptrdiff_t kTileRows = 16;

// Gemm: a Bf16Gemm of one plane.
template <class Gemm>
class DecodeTile : public DecodeStreams<typename Gemm::Element> {
  using T = typename Gemm::Element;
  using Base = DecodeStreams<T>;
  using Base::num_streams_;
  using Base::p_;
  using Base::rows_;
  using typename Base::Row;
  static_assert(Gemm::kPlanes == 1);

  struct Stream {
    typename Gemm::Right q;  // [head_dim, 16 rows]
    float* out;              // [16 rows, head_dim_v to 16]
    alignas(64) float row_max[kTileRows];
    alignas(64) float row_sum[kTileRows];
  };

 public:
  static HWY_INLINE void begin() { Gemm::begin(); }
  static HWY_INLINE void end() { Gemm::end(); }

  HWY_INLINE DecodeTile(const AttentionFwdParams& params, ForwardPartials<float> partials) : Base(params, partials) {}

  HWY_INLINE size_t lay_out(void* memory) {
    Arena arena(memory);
    const ptrdiff_t dim = p_.shape.head_dim;
    out_stride_ = round_up(p_.shape.head_dim_v, 16);
    q_size_ = round_up(Gemm::right_size(dim, kTileRows), 64);
    rows_ = arena.take<Row>(num_streams_ * kTileRows);
    streams_ = arena.take<Stream>(num_streams_);
    q_memory_ = arena.take<char>(num_streams_ * q_size_);
    out_ = arena.take<float>(num_streams_ * kTileRows * out_stride_);
    gathered_ = arena.take<T>(kTileRows * dim);
    k_memory_ = arena.take<char>(Gemm::left_size(kTileKeys, dim));
    v_memory_ = arena.take<char>(Gemm::right_size(kTileKeys, p_.shape.head_dim_v));
    scores_ = arena.take<float>(kTileKeys * kTileRows);
    transposed_ = arena.take<float>(kTileKeys * kTileRows);
    probs_ = arena.take<Bf16Bits>(kTileKeys * kTileRows);
    return arena.bytes();
  }

  HWY_NOINLINE void run(const ForwardTask& task) {
    const Sequence sequence = sequence_at(p_.shape, p_.seq, task.sequence);
    const Band band(p_.band, sequence);
    const ptrdiff_t per_stream = Base::rows_per_stream(task), num_rows = num_streams_ * per_stream;
    Base::start_rows(task, num_rows);
    for (ptrdiff_t s = 0; s < num_streams_; ++s) start(streams_[s], s, per_stream, sequence);
    for (int64_t key = task.keys.begin; key < task.keys.end; key += kTileKeys) {
      const Range keys{key, min_of(key + kTileKeys, task.keys.end)};
      for (ptrdiff_t s = 0; s < num_streams_; ++s) {
        add_keys(streams_[s], rows_ + s * per_stream, per_stream, keys, band, sequence);
      }
    }
    for (ptrdiff_t r = 0; r < num_rows; ++r) {
      const Stream& stream = streams_[r / per_stream];
      rows_[r].max = stream.row_max[r % per_stream];
      rows_[r].sum = stream.row_sum[r % per_stream];
      Base::finish(r, stream.out + r % per_stream * out_stride_, task, sequence);
    }
  }

 private:
  HWY_INLINE void start(Stream& stream, ptrdiff_t index, ptrdiff_t per_stream, const Sequence& sequence) {
    const ptrdiff_t dim = p_.shape.head_dim;
    std::memset(static_cast<void*>(gathered_), 0, kTileRows * dim * sizeof(T));
    for (ptrdiff_t r = 0; r < per_stream; ++r) {
      const Row& row = rows_[index * per_stream + r];
      std::memcpy(gathered_ + r * dim,
                  row_of<const T>(p_.q, sequence.batch, sequence.q_begin + row.query, row.group, row.head),
                  dim * sizeof(T));
    }
    stream.q = Gemm::pack_right_transposed(q_memory_ + index * q_size_, gathered_, dim, kTileRows, dim);
    stream.out = out_ + index * kTileRows * out_stride_;
    zero_row(stream.out, kTileRows * out_stride_);
    for (ptrdiff_t r = 0; r < kTileRows; ++r) {
      stream.row_max[r] = -kInfinity<float>;
      stream.row_sum[r] = 0;
    }
  }

  HWY_INLINE void add_keys(Stream& stream, const Row* rows, ptrdiff_t num_rows, Range keys, const Band& band,
                           const Sequence& sequence) {
    const ptrdiff_t count = keys.end - keys.begin, padded = round_up(count, 32), dim = p_.shape.head_dim;
    const T* k = row_of<const T>(p_.k, sequence.batch, sequence.k_begin + keys.begin, rows[0].group, rows[0].head);
    const T* v = row_of<const T>(p_.v, sequence.batch, sequence.k_begin + keys.begin, rows[0].group, rows[0].head);

    // Whole tiles of K are read in place; tiles that would reach past a row or past the last key come from a copy.
    const bool in_place = dim % 32 == 0 && count % 16 == 0;
    const PlaneLeft packed_k = in_place ? PlaneLeft{reinterpret_cast<const Bf16Bits*>(k), p_.k.seq_stride, 0}
                                        : Gemm::pack_left(k_memory_, k, p_.k.seq_stride, count, dim);
    Gemm::multiply(scores_, kTileRows, packed_k, stream.q, count, kTileRows, dim, false);
    const __m512 scale = _mm512_set1_ps(static_cast<float>(p_.softmax_scale * kLog2e));
    for (ptrdiff_t n = 0; n < count; ++n) at(n, _mm512_mul_ps(at(n), scale));
    if (p_.bias.data) add_bias_rows(rows, num_rows, keys, sequence);
    for (ptrdiff_t r = 0; r < num_rows; ++r) {
      const Range seen = Base::visible(rows[r], keys, band);
      for (int64_t n = 0; n < seen.begin; ++n) scores_[n * kTileRows + r] = -kInfinity<float>;
      for (int64_t n = seen.end; n < count; ++n) scores_[n * kTileRows + r] = -kInfinity<float>;
    }
    softmax(stream, count, padded);

    transpose(scores_, kTileRows, transposed_, kTileKeys, padded, kTileRows);
    for (ptrdiff_t r = 0; r < kTileRows; ++r) {
      for (ptrdiff_t n = 0; n < padded; n += 32) {
        const float* from = transposed_ + r * kTileKeys + n;
        split_planes<1>(_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16),
                        [&](int, __m512i bits) { _mm512_storeu_si512(probs_ + r * kTileKeys + n, bits); });
      }
    }
    const auto packed_v = Gemm::pack_right(v_memory_, v, p_.v.seq_stride, count, p_.shape.head_dim_v);
    Gemm::multiply(stream.out, out_stride_, {probs_, kTileKeys, 0}, packed_v, kTileRows, out_stride_, padded, true);
  }

  HWY_INLINE __m512 at(ptrdiff_t key) const { return _mm512_load_ps(scores_ + key * kTileRows); }
  HWY_INLINE void at(ptrdiff_t key, __m512 rows) { _mm512_store_ps(scores_ + key * kTileRows, rows); }

  HWY_INLINE void add_bias_rows(const Row* rows, ptrdiff_t num_rows, Range keys, const Sequence& sequence) {
    for (ptrdiff_t r = 0; r < num_rows; ++r) {
      const T* bias = bias_row<const T>(p_.bias, sequence.batch, rows[r].query, rows[r].group, rows[r].head) +
                      keys.begin * p_.bias.k_stride;
      for (int64_t n = 0; n < keys.end - keys.begin; ++n) {
        scores_[n * kTileRows + r] += to_compute(bias[n * p_.bias.k_stride]) * static_cast<float>(kLog2e);
      }
    }
  }

  // Scores (exponents of 2) to probabilities, those of keys from count to padded 0.
  HWY_INLINE void softmax(Stream& stream, ptrdiff_t count, ptrdiff_t padded) {
    const __m512 lowest = _mm512_set1_ps(-hwy::HighestValue<float>());
    __m512 row_max = _mm512_load_ps(stream.row_max), row_sum = _mm512_load_ps(stream.row_sum);
    __m512 max0 = at(0), max1 = at(count - 1);
    for (ptrdiff_t n = 0; n + 2 <= count; n += 2) {
      max0 = _mm512_max_ps(max0, at(n));
      max1 = _mm512_max_ps(max1, at(n + 1));
    }
    const __m512 seen_max = _mm512_max_ps(max0, max1);
    // As in the tiled forward, the maximum is only raised by scores that exceed it by more than 2^8.
    if (_mm512_cmp_ps_mask(seen_max, _mm512_add_ps(row_max, _mm512_set1_ps(8)), _CMP_GT_OQ)) {
      const __m512 raised = _mm512_max_ps(row_max, seen_max);
      const Vec<float> factor = exp2_vec<5>(Vec<float>{_mm512_sub_ps(row_max, _mm512_max_ps(raised, lowest))});
      row_sum = _mm512_mul_ps(row_sum, factor.raw);
      row_max = raised;
      alignas(64) float by_row[kTileRows];
      _mm512_store_ps(by_row, factor.raw);
      for (ptrdiff_t r = 0; r < kTileRows; ++r) {
        for (float* out = stream.out + r * out_stride_; out < stream.out + (r + 1) * out_stride_; ++out)
          *out *= by_row[r];
      }
    }
    const __m512 base =
        _mm512_mask_blend_ps(_mm512_cmp_ps_mask(row_max, lowest, _CMP_LT_OQ), row_max, _mm512_setzero_ps());
    for (ptrdiff_t n = 0; n < count; ++n) {
      const Vec<float> p = exp2_vec<Gemm::kExp2Degree>(Vec<float>{_mm512_sub_ps(at(n), base)});
      row_sum = _mm512_add_ps(row_sum, p.raw);
      at(n, p.raw);
    }
    for (ptrdiff_t n = count; n < padded; ++n) at(n, _mm512_setzero_ps());
    _mm512_store_ps(stream.row_max, row_max);
    _mm512_store_ps(stream.row_sum, row_sum);
  }

  ptrdiff_t out_stride_;
  size_t q_size_;
  Stream* streams_;
  char *q_memory_, *k_memory_, *v_memory_;
  float *out_, *scores_, *transposed_;  // [16 rows, head_dim_v] per stream, [keys, 16 rows], [16 rows, keys]
  T* gathered_;
  Bf16Bits* probs_;  // [16 rows, keys]
};

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
