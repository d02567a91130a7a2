#include "xformers/kernels/params/attention_check.h"

#include <string>

#include "xformers/kernels/base/error.h"

namespace xformers {
namespace {

void check_shape(const AttentionShape& shape) {
  if (shape.batch < 0 || shape.seqlen_q < 0 || shape.seqlen_k < 0 || shape.num_groups < 0 ||
      shape.heads_per_group < 0 || shape.head_dim < 1 || shape.head_dim_v < 1) {
    throw Error(
        "attention: a size is negative, or head_dim or head_dim_v is below 1; expected sizes >= 0 and head dims >= 1.  "
        "Fix: see AttentionShape");
  }
}

void check_packed(const AttentionShape& shape, const SeqLayout& seq) {
  const bool has_keys = seq.cu_seqlens_k || seq.paged();
  if (seq.packed() && (shape.batch != 1 || !has_keys)) {
    throw Error("attention: packed sequences with batch " + std::to_string(shape.batch) +
                (has_keys ? "" : " and no cu_seqlens_k") +
                ", expected batch 1 and both offset arrays.  Fix: concatenate the sequences along seqlen");
  }
}

void check_pages(const SeqLayout& seq) {
  if (!seq.paged()) return;
  const PageTable& pages = seq.pages;
  constexpr int64_t kMost = int64_t{1} << 31;
  if (!seq.packed() || !seq.seqused_k) {
    throw Error(
        "attention: a page table without cu_seqlens_q or without seqused_k, expected both.  Fix: say where the queries "
        "of each sequence lie and how many keys it has");
  }
  if (pages.page_size < 1 || pages.page_size > kMost || pages.max_pages < 0 || pages.max_pages > kMost) {
    throw Error("attention: page_size is " + std::to_string(pages.page_size) + " with " +
                std::to_string(pages.max_pages) +
                " pages per sequence, expected page_size >= 1, pages >= 0 and both below 2^31.  Fix: see PageTable");
  }
}

void check_band(const MaskBand& band) {
  if (band.window_left < kUnbounded || band.window_right < kUnbounded) {
    throw Error("attention: a window is below -1, expected >= 0, or -1 for unbounded.  Fix: see MaskBand");
  }
}

void check_dropout(const Dropout& dropout) {
  if (!(dropout.p >= 0 && dropout.p <= 1)) {
    throw Error("attention: dropout p is " + std::to_string(dropout.p) +
                ", expected 0 <= p <= 1.  Fix: pass the probability of dropping");
  }
}

void check_quantization(const AttentionShape& shape, const KvQuantization& quantization) {
  const auto refuse = [](const std::string& what) { throw Error("attention: " + what + ".  Fix: see KvQuantization"); };
  const auto head_dims = [&] {
    return "head_dim is " + std::to_string(shape.head_dim) + " and head_dim_v " + std::to_string(shape.head_dim_v);
  };
  switch (quantization.format) {
    case KvFormat::kPlain: return;
    case KvFormat::kInt4:
      if (quantization.num_groups < 1 || shape.head_dim % (8 * quantization.num_groups) != 0 ||
          shape.head_dim_v % (8 * quantization.num_groups) != 0) {
        refuse(head_dims() + " for int4 keys in " + std::to_string(quantization.num_groups) +
               " groups, expected multiples of 8 * groups");
      }
      return;
    case KvFormat::kFp8:
      if (shape.head_dim % 4 != 0 || shape.head_dim_v % 4 != 0)
        refuse(head_dims() + " for fp8 keys, expected multiples of 4");
      if (!quantization.k_scale_shift.data != !quantization.v_scale_shift.data ||
          (!quantization.k_scale_shift.data && shape.seqlen_k > 0))
        refuse("fp8 keys without k_scale_shift or v_scale_shift, expected both");
      return;
  }
}

}  // namespace

void check(const AttentionFwdParams& params) {
  check_shape(params.shape);
  check_packed(params.shape, params.seq);
  check_pages(params.seq);
  check_band(params.band);
  check_dropout(params.dropout);
  check_quantization(params.shape, params.quantization);
  if (params.num_splits < 0) {
    throw Error("attention: num_splits is " + std::to_string(params.num_splits) +
                ", expected >= 0.  Fix: pass 0 to have it chosen");
  }
}

void check(const AttentionBwdParams& params) {
  check_shape(params.shape);
  check_packed(params.shape, params.seq);
  if (params.seq.paged()) {
    throw Error(
        "attention: backward of paged keys, expected keys in rows of their own.  Fix: gather the pages first, and add "
        "the gradients back to them");
  }
  check_band(params.band);
  check_dropout(params.dropout);
}

}  // namespace xformers
