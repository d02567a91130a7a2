#include "xformers/kernels/cuda/attention/call_facts.h"

#include <cstdint>

#include "xformers/kernels/cuda/attention/tiles.h"

namespace xformers::cuda {

bool is_aligned(const HeadsTensor& t, const AttentionShape& shape, int64_t seqlen, int64_t element_size,
                int64_t bytes) {
  const auto fits = [&](int64_t size, int64_t stride) { return size <= 1 || stride * element_size % bytes == 0; };
  return reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(bytes) == 0 &&
         fits(shape.batch, t.batch_stride) && fits(seqlen, t.seq_stride) && fits(shape.num_groups, t.group_stride) &&
         fits(shape.heads_per_group, t.head_stride);
}

bool rows_of_16_bytes(const HeadsTensor& t, const AttentionShape& shape, int64_t seqlen, int64_t dim) {
  return dim % 8 == 0 && is_aligned(t, shape, seqlen, 2, 16);
}
bool fp32_rows_of_16_bytes(const HeadsTensor& t, const AttentionShape& shape, int64_t seqlen, int64_t dim) {
  return dim % 4 == 0 && is_aligned(t, shape, seqlen, 4, 16);
}

bool bias_aligned(const ScoreBias& bias, const AttentionShape& shape, int64_t elements) {
  if (!bias.data) return true;
  const auto fits = [&](int64_t size, int64_t stride) { return size <= 1 || stride % elements == 0; };
  return bias.k_stride == 1 && reinterpret_cast<uintptr_t>(bias.data) % static_cast<uintptr_t>(2 * elements) == 0 &&
         fits(shape.batch, bias.batch_stride) && fits(shape.num_groups, bias.group_stride) &&
         fits(shape.heads_per_group, bias.head_stride) && fits(shape.seqlen_q, bias.q_stride);
}

bool q_aligned(const AttentionFwdParams& p) {
  return rows_of_16_bytes(p.q, p.shape, p.shape.seqlen_q, p.shape.head_dim);
}
bool kv_aligned(const AttentionFwdParams& p) {
  return rows_of_16_bytes(p.k, p.shape, p.shape.seqlen_k, p.shape.head_dim) &&
         rows_of_16_bytes(p.v, p.shape, p.shape.seqlen_k, p.shape.head_dim_v);
}

int packed_heads(const AttentionFwdParams& p) {
  if (p.dropout.p > 0) return 1;  // the stream goes by blocks of 32 queries of a head
  const bool shared = p.shape.heads_per_group > 1 && p.k.head_stride == 0 && p.v.head_stride == 0 &&
                      (p.quantization.format != KvFormat::kFp8 || (p.quantization.k_scale_shift.head_stride == 0 &&
                                                                   p.quantization.v_scale_shift.head_stride == 0));
  return shared ? static_cast<int>(p.shape.heads_per_group) : 1;
}

int64_t row_tiles(const AttentionFwdParams& p, int block_m) {
  const int pack = packed_heads(p);
  return max_tiles(p.shape.seqlen_q * pack, p.seq, block_m) * p.shape.batch * p.shape.num_heads() / pack;
}

int64_t total_rows(const AttentionShape& shape) { return shape.batch * shape.num_heads() * shape.seqlen_q; }

namespace {
// Of the parts' statistics, in units of 16 bytes, since results come behind them.
size_t stats_bytes(int64_t splits, int64_t rows) {
  return (static_cast<size_t>(splits * rows) * sizeof(PartStats) + 15) / 16 * 16;
}
}  // namespace

size_t partial_bytes(const AttentionFwdParams& p, int64_t splits) {
  if (splits == 1) return 0;
  const int64_t rows = total_rows(p.shape);
  return stats_bytes(splits, rows) + static_cast<size_t>(splits * rows * p.shape.head_dim_v) * sizeof(float);
}

void set_partial_results(FwdArgs& args, int64_t splits, const Stream& stream) {
  args.num_splits = static_cast<int>(splits);
  args.total_rows = total_rows(args.p.shape);
  if (splits == 1) return;
  args.stats_partial = static_cast<PartStats*>(stream.workspace);
  args.out_partial =
      reinterpret_cast<float*>(static_cast<char*>(stream.workspace) + stats_bytes(splits, args.total_rows));
}

FwdArgs forward_args(const AttentionFwdParams& p) {
  FwdArgs args;
  args.p = p;
  args.scale_log2 = static_cast<float>(p.softmax_scale * kLog2eDouble);
  args.kept = p.dropout.p < 1 ? 1 / (1 - p.dropout.p) : 0;
  args.drop_rule = drop_rule(p.dropout.p);
  return args;
}

FwdArgs half_forward_args(const AttentionFwdParams& p) {
  FwdArgs args = forward_args(p);
  args.packed_heads = packed_heads(p);
  args.aligned_q = q_aligned(p);
  args.aligned_kv = kv_aligned(p);
  args.aligned_out = p.wide_out ? is_aligned(p.out, p.shape, p.shape.seqlen_q, 4, 8)
                                : is_aligned(p.out, p.shape, p.shape.seqlen_q, 2, 4);
  args.chunked_out = p.wide_out ? fp32_rows_of_16_bytes(p.out, p.shape, p.shape.seqlen_q, p.shape.head_dim_v)
                                : rows_of_16_bytes(p.out, p.shape, p.shape.seqlen_q, p.shape.head_dim_v);
  return args;
}

}  // namespace xformers::cuda
