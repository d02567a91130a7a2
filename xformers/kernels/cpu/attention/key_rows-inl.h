// Where the rows of a block of keys come from. The kernels see rows one stride apart:
//   where they lie      dense, packed and padded layouts; pages, while a block's rows lie next to each other
//   gathered            pages: copied next to each other into memory that stays in the cache
//   dequantised         int4 and fp8, into the same memory
#pragma once

#include "xformers/kernels/cpu/attention/band.h"
#include "xformers/kernels/cpu/attention/dequantize-inl.h"
#include "xformers/kernels/cpu/attention/scores-inl.h"
#include "xformers/kernels/cpu/base/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

template <class T>
struct Rows {
  T* data;
  ptrdiff_t stride;
};

template <class T>
class KeyRows {
 public:
  HWY_INLINE explicit KeyRows(const AttentionFwdParams& params) : p_(params) {}

  // Numbers of a copy of `max_keys` rows of `dim`: none where no layout needs one.
  HWY_INLINE size_t copy_size(ptrdiff_t max_keys, ptrdiff_t dim) const {
    return p_.seq.paged() || p_.quantization.format != KvFormat::kPlain ? max_keys * dim : 0;
  }

  // Rows of these keys of the sequence: where they lie, or in `copy`.
  HWY_INLINE Rows<T> keys(const Sequence& sequence, Range keys, int64_t group, int64_t head, Rows<T> copy) const {
    return rows(p_.k, p_.quantization.k_scale_shift, p_.shape.head_dim, copy, sequence, keys, group, head);
  }
  HWY_INLINE Rows<T> values(const Sequence& sequence, Range keys, int64_t group, int64_t head, Rows<T> copy) const {
    return rows(p_.v, p_.quantization.v_scale_shift, p_.shape.head_dim_v, copy, sequence, keys, group, head);
  }

  // Asks memory for the rows of these keys, as they are stored.
  HWY_INLINE void fetch_keys(const Sequence& sequence, Range keys, int64_t group, int64_t head) const {
    fetch(p_.k, p_.shape.head_dim, sequence, keys, group, head);
  }
  HWY_INLINE void fetch_values(const Sequence& sequence, Range keys, int64_t group, int64_t head) const {
    fetch(p_.v, p_.shape.head_dim_v, sequence, keys, group, head);
  }

  // Keys from `key` on whose rows of a plain format lie in memory one stride apart, at most up to `end`.
  HWY_INLINE RowRun in_place(const Sequence& sequence, int64_t key, int64_t end) const {
    const RowRun run = rows_from(p_.shape, p_.seq, sequence, key, end);
    return {run.row, p_.quantization.format == KvFormat::kPlain ? run.count : 0};
  }

 private:
  HWY_INLINE Rows<T> rows(const HeadsTensor& tensor, const HeadsTensor& scale_shift, ptrdiff_t dim, const Rows<T>& copy,
                          const Sequence& sequence, Range keys, int64_t group, int64_t head) const {
    const KvFormat format = p_.quantization.format;
    const ptrdiff_t group_size = format == KvFormat::kInt4 ? dim / p_.quantization.num_groups : 0;
    RowRun run = rows_from(p_.shape, p_.seq, sequence, keys.begin, keys.end);
    if (format == KvFormat::kPlain && run.count == keys.end - keys.begin) {
      return {row_of<T>(tensor, sequence.batch, run.row, group, head), tensor.seq_stride};
    }
    T* to = copy.data;
    for (int64_t key = keys.begin; key < keys.end; key += run.count) {
      run = rows_from(p_.shape, p_.seq, sequence, key, keys.end);
      for (int64_t row = run.row; row < run.row + run.count; ++row, to += copy.stride) {
        if (format == KvFormat::kPlain) {
          std::memcpy(to, row_of<const T>(tensor, sequence.batch, row, group, head), dim * sizeof(T));
        } else if (format == KvFormat::kInt4) {
          dequantize_int4(row_of<const uint32_t>(tensor, sequence.batch, row, group, head), p_.quantization.num_groups,
                          group_size, to);
        } else {
          dequantize_fp8(row_of<const uint32_t>(tensor, sequence.batch, row, group, head),
                         *row_of<const uint32_t>(scale_shift, sequence.batch, row, group, head), dim, to);
        }
      }
    }
    return copy;
  }

  HWY_INLINE void fetch(const HeadsTensor& tensor, ptrdiff_t dim, const Sequence& sequence, Range keys, int64_t group,
                        int64_t head) const {
    const KvQuantization& quantization = p_.quantization;
    const bool plain = quantization.format == KvFormat::kPlain, int4 = quantization.format == KvFormat::kInt4;
    const ptrdiff_t size = plain ? sizeof(T) : sizeof(uint32_t);
    const ptrdiff_t bytes = plain ? dim * size : int4 ? (quantization.num_groups + dim / 8) * size : dim;
    RowRun run;
    for (int64_t key = keys.begin; key < keys.end; key += run.count) {
      run = rows_from(p_.shape, p_.seq, sequence, key, keys.end);
      const char* row =
          static_cast<const char*>(tensor.data) + tensor.offset(sequence.batch, run.row, group, head) * size;
      for (int64_t i = 0; i < run.count; ++i, row += tensor.seq_stride * size) {
        for (ptrdiff_t b = 0; b < bytes; b += 64) __builtin_prefetch(row + b, 0, 2);
      }
    }
  }

  const AttentionFwdParams& p_;
};

// A finished row of out, factor * from.
template <class T, class C>
HWY_INLINE void store_out(const AttentionFwdParams& params, const C* from, C factor, int64_t batch, int64_t row,
                          int64_t group, int64_t head) {
  if (params.wide_out) {
    store_row(from, factor, row_of<C>(params.out, batch, row, group, head), params.shape.head_dim_v);
  } else {
    store_row(from, factor, row_of<T>(params.out, batch, row, group, head), params.shape.head_dim_v);
  }
}

template <class C>
HWY_INLINE void store_lse(const AttentionFwdParams& params, C lse, C lse_low, int64_t batch, int64_t row, int64_t group,
                          int64_t head) {
  if (params.lse.data) *row_of<C>(params.lse, batch, row, group, head) = lse;
  if (params.lse_low.data) *row_of<C>(params.lse_low, batch, row, group, head) = lse_low;
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
