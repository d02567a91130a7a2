#include "xformers/kernels/cuda/attention/facts.h"

#include <algorithm>
#include <cstdint>

#include "xformers/kernels/cuda/attention/tiles.h"
#include "xformers/kernels/params/sequence.h"

namespace xformers::cuda {
namespace {

// `bytes`: a power of two.
bool is_multiple(int64_t x, int64_t bytes) { return (x & (bytes - 1)) == 0; }

// Rows begin at multiples of `bytes`. Strides of dimensions with one entry don't matter.
bool begins_at(const HeadsTensor& t, const AttentionShape& shape, int64_t seqlen, int64_t size, int64_t bytes) {
  const auto fits = [&](int64_t entries, int64_t stride) { return entries <= 1 || is_multiple(stride * size, bytes); };
  return is_multiple(reinterpret_cast<intptr_t>(t.data), bytes) && fits(shape.batch, t.batch_stride) &&
         fits(seqlen, t.seq_stride) && fits(shape.num_groups, t.group_stride) &&
         fits(shape.heads_per_group, t.head_stride);
}
bool begins_at(const ScoreBias& t, const AttentionShape& shape, int64_t sequences, int64_t size, int64_t bytes) {
  const auto fits = [&](int64_t entries, int64_t stride) { return entries <= 1 || is_multiple(stride * size, bytes); };
  return !t.data || (t.k_stride == 1 && is_multiple(reinterpret_cast<intptr_t>(t.data), bytes) &&
                     fits(sequences, t.batch_stride) && fits(shape.num_groups, t.group_stride) &&
                     fits(shape.heads_per_group, t.head_stride) && fits(shape.seqlen_q, t.q_stride));
}

RowAccess rows_of(const HeadsTensor& t, const AttentionShape& shape, int64_t seqlen, int64_t dim, int64_t size) {
  return is_multiple(dim * size, 16) && begins_at(t, shape, seqlen, size, 16) ? RowAccess::kChunks : RowAccess::kAny;
}
RowAccess rows_of(const ScoreBias& t, const AttentionProblem& p, int64_t size) {
  return begins_at(t, p.shape, num_sequences(p.shape, p.seq), size, 16) ? RowAccess::kChunks : RowAccess::kAny;
}

ProblemFacts problem_facts(const AttentionProblem& p) {
  const AttentionShape& s = p.shape;
  const auto size = static_cast<int64_t>(size_of(s.dtype));
  ProblemFacts facts;
  facts.device = current_device();
  facts.total_rows = s.batch * s.num_heads() * s.seqlen_q;
  facts.sequences = std::max<int64_t>(p.seq.packed() ? p.seq.num_sequences : 1, 1);
  facts.banded = p.band.window_left != kUnbounded || p.band.window_right != kUnbounded;
  facts.q = rows_of(p.q, s, s.seqlen_q, s.head_dim, size);
  facts.kv = access_of(rows_of(p.k, s, s.seqlen_k, s.head_dim, size), rows_of(p.v, s, s.seqlen_k, s.head_dim_v, size));
  facts.bias = rows_of(p.mods.bias, p, size);
  facts.keys = (p.seq.paged() ? kPagedKeys : 0) | (p.blocks.present() ? kBlockedKeys : 0);
  facts.score_ops = (p.mods.bias.data ? kBiasOp : 0) | (p.dropout.p > 0 ? kDropoutOp : 0) |
                    (p.softmax_scale > 0 ? 0 : kSignedScaleOp) | (p.mods.softcap > 0 ? kSoftcapOp : 0) |
                    (p.mods.alibi_slopes.data ? kAlibiOp : 0);
  return facts;
}

int packed_heads(const AttentionFwdParams& p) {
  if (p.dropout.p > 0) return 1;                                  // the stream goes by blocks of 32 queries of a head
  if (p.blocks.present() && p.blocks.head_stride != 0) return 1;  // the rows of a tile walk by one layout
  const KvQuantization& quantization = p.quantization;
  const bool shared = p.shape.heads_per_group > 1 && p.k.head_stride == 0 && p.v.head_stride == 0 &&
                      (quantization.format != KvFormat::kFp8 ||
                       (quantization.k_scale_shift.head_stride == 0 && quantization.v_scale_shift.head_stride == 0));
  return shared ? static_cast<int>(p.shape.heads_per_group) : 1;
}

}  // namespace

FwdFacts facts_of(const AttentionFwdParams& p) {
  const AttentionShape& s = p.shape;
  const int64_t out_size = p.wide_out && s.dtype != DType::kFloat64 ? 4 : static_cast<int64_t>(size_of(s.dtype));
  FwdFacts facts{problem_facts(p)};
  if (p.quantization.format != KvFormat::kPlain) facts.keys |= kQuantisedKeys;
  facts.packed_heads = packed_heads(p);
  facts.out = rows_of(p.out, s, s.seqlen_q, s.head_dim_v, out_size);
  facts.out_pairs = begins_at(p.out, s, s.seqlen_q, out_size, 2 * out_size);
  return facts;
}

BwdFacts facts_of(const AttentionBwdParams& p) {
  const AttentionShape& s = p.shape;
  const auto size = static_cast<int64_t>(size_of(s.dtype));
  BwdFacts facts{problem_facts(p)};
  facts.dout = rows_of(p.dout, s, s.seqlen_q, s.head_dim_v, size);
  facts.dq = rows_of(p.dq, s, s.seqlen_q, s.head_dim, size);
  facts.dkv =
      access_of(rows_of(p.dk, s, s.seqlen_k, s.head_dim, size), rows_of(p.dv, s, s.seqlen_k, s.head_dim_v, size));
  // Of a shared bias it is fp32, and added to.
  facts.dbias = rows_of(p.dbias, p, p.dbias_shared ? 4 : size);
  facts.dbias_pairs = begins_at(p.dbias, s, num_sequences(s, p.seq), size, p.dbias_shared ? size : 2 * size);
  return facts;
}

void require(const FwdFacts& facts, Features features, Reasons& reasons) {
  const int ops = facts.score_ops & ~features.score_ops, keys = facts.keys & ~features.keys;
  if (ops & kBiasOp) reasons.add("bias");
  if (ops & kDropoutOp) reasons.add("dropout");
  if (ops & kSignedScaleOp) reasons.add("softmax_scale is not positive");
  if (ops & kSoftcapOp) reasons.add("softcap");
  if (ops & kAlibiOp) reasons.add("alibi_slopes");
  if (keys & kPagedKeys) reasons.add("paged keys");
  if (keys & kQuantisedKeys) reasons.add("quantised keys");
  if (keys & kBlockedKeys) reasons.add("a block mask");
  if (features.rows == RowAccess::kAny) return;
  if (!(keys & kQuantisedKeys) && access_of(facts.q, facts.kv) == RowAccess::kAny) {
    reasons.add("rows of q, k or v are not in units of 16 bytes");
  }
  if (features.score_ops & kBiasOp && facts.bias == RowAccess::kAny) {
    reasons.add("rows of the bias are not in units of 16 bytes");
  }
}

int64_t row_tiles(const AttentionFwdParams& p, const FwdFacts& facts, int block_m) {
  const int pack = facts.packed_heads;
  return max_tiles(p.shape.seqlen_q * pack, p.seq, block_m) * p.shape.batch * p.shape.num_heads() / pack;
}

}  // namespace xformers::cuda
