#include "xformers/kernels/params/attention_check.h"

#include <cmath>
#include <string>

#include "xformers/kernels/base/check.h"
#include "xformers/kernels/params/kv_rows.h"

namespace xformers {
namespace {

[[noreturn]] void refuse(std::string_view name, std::string_view got, std::string_view expected, std::string_view fix) {
  fail({.where = "attention", .name = name, .got = got, .expected = expected, .fix = fix});
}

void check_shape(const AttentionShape& shape) {
  if (shape.batch < 0 || shape.seqlen_q < 0 || shape.seqlen_k < 0 || shape.num_groups < 0 ||
      shape.heads_per_group < 0 || shape.head_dim < 1 || shape.head_dim_v < 1) {
    refuse("a size", "negative, or head_dim or head_dim_v below 1", "sizes >= 0 and head dims >= 1",
           "see AttentionShape");
  }
}

void check_packed(const AttentionShape& shape, const SeqLayout& seq) {
  const bool has_keys = seq.cu_seqlens_k || seq.paged();
  if (seq.packed() && (shape.batch != 1 || !has_keys)) {
    refuse("the batch of packed sequences", std::to_string(shape.batch) + (has_keys ? "" : " without cu_seqlens_k"),
           "1 with both offset arrays", "concatenate the sequences along seqlen");
  }
}

void check_pages(const SeqLayout& seq) {
  if (!seq.paged()) return;
  const PageTable& pages = seq.pages;
  constexpr int64_t kMost = int64_t{1} << 31;
  if (!seq.packed() || !seq.seqused_k) {
    refuse("a page table", "without cu_seqlens_q or without seqused_k", "both",
           "say where the queries of each sequence lie and how many keys it has");
  }
  if (pages.page_size < 1 || pages.page_size > kMost || pages.max_pages < 0 || pages.max_pages > kMost) {
    refuse("page_size",
           std::to_string(pages.page_size) + " with " + std::to_string(pages.max_pages) + " pages per sequence",
           "page_size >= 1, pages >= 0 and both below 2^31", "see PageTable");
  }
}

void check_band(const MaskBand& band) {
  if (band.window_left < kUnbounded || band.window_right < kUnbounded) {
    refuse("a window", "below -1", ">= 0, or -1 for unbounded", "see MaskBand");
  }
}

void check_blocks(const AttentionProblem& problem) {
  const BlockMask& mask = problem.blocks;
  if (!mask.present()) return;
  const AttentionShape& shape = problem.shape;
  if (problem.seq.packed()) {
    refuse("a block mask", "beside packed sequences", "a dense layout", "say who sees whom in one of the two");
  }
  if (mask.block_q < 16 || mask.block_q % 16 || mask.block_k < 16 || mask.block_k % 16) {
    refuse("the size of a block", std::to_string(mask.block_q) + " x " + std::to_string(mask.block_k),
           "multiples of 16", "see BlockMask");
  }
  const auto blocks = [](int64_t rows, int64_t block) { return (rows + block - 1) / block; };
  if (mask.num_q_blocks != blocks(shape.seqlen_q, mask.block_q) ||
      mask.num_k_blocks != blocks(shape.seqlen_k, mask.block_k)) {
    refuse("a block mask", std::to_string(mask.num_q_blocks) + " x " + std::to_string(mask.num_k_blocks) + " blocks",
           "as many as cover queries and keys", "see BlockMask");
  }
}

void check_dropout(const Dropout& dropout) {
  if (!(dropout.p >= 0 && dropout.p <= 1)) {
    refuse("dropout p", std::to_string(dropout.p), "0 <= p <= 1", "pass the probability of dropping");
  }
}

void check_modifiers(const ScoreModifiers& mods) {
  if (!(mods.softcap >= 0 && std::isfinite(mods.softcap))) {
    refuse("softcap", std::to_string(mods.softcap), "0 (off) or a finite number above it", "pass the largest score");
  }
}

void check_quantization(const AttentionShape& shape, const KvQuantization& quantization) {
  const auto head_dims = [&] {
    return std::to_string(shape.head_dim) + " with head_dim_v " + std::to_string(shape.head_dim_v);
  };
  const int64_t groups = quantization.num_groups;
  switch (quantization.format) {
    case KvFormat::kPlain: return;
    case KvFormat::kInt4:
      if (!int4_rows_fit(shape.head_dim, groups) || !int4_rows_fit(shape.head_dim_v, groups)) {
        refuse("head_dim", head_dims() + " for int4 keys in " + std::to_string(groups) + " groups",
               "multiples of 8 * groups, and 1, 2, 4 or 8 groups", "see KvQuantization");
      }
      return;
    case KvFormat::kFp8:
      if (!fp8_rows_fit(shape.head_dim) || !fp8_rows_fit(shape.head_dim_v)) {
        refuse("head_dim", head_dims() + " for fp8 keys", "multiples of 4", "see KvQuantization");
      }
      if (!quantization.k_scale_shift.data != !quantization.v_scale_shift.data ||
          (!quantization.k_scale_shift.data && shape.seqlen_k > 0)) {
        refuse("k_scale_shift or v_scale_shift", "missing beside fp8 keys", "both", "see KvQuantization");
      }
      return;
  }
}

}  // namespace

void check(const AttentionFwdParams& params) {
  check_shape(params.shape);
  check_modifiers(params.mods);
  check_packed(params.shape, params.seq);
  check_pages(params.seq);
  check_band(params.band);
  check_blocks(params);
  check_dropout(params.dropout);
  check_quantization(params.shape, params.quantization);
  if (params.num_splits < 0) {
    refuse("num_splits", std::to_string(params.num_splits), ">= 0", "pass 0 to have it chosen");
  }
}

void check(const AttentionBwdParams& params) {
  check_shape(params.shape);
  check_modifiers(params.mods);
  check_packed(params.shape, params.seq);
  if (params.seq.paged()) {
    refuse("the layout of keys", "paged in backward", "keys in rows of their own",
           "gather the pages first, and add the gradients back to them");
  }
  check_band(params.band);
  check_blocks(params);
  check_dropout(params.dropout);
  if (params.dbias_shared && (params.seq.most_queries < 0 || params.seq.most_keys < 0)) {
    refuse("the gradient of a shared bias", "given without most_queries and most_keys", "both in SeqLayout",
           "say how many rows and columns the bias has");
  }
}

}  // namespace xformers
