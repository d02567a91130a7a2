#include "xformers/kernels/cuda/attention/arguments.h"

#include <cmath>

#include "xformers/kernels/cuda/attention/head_gradients.h"
#include "xformers/kernels/cuda/attention/prepare_backward.h"
#include "xformers/kernels/cuda/attention/uncovered.h"

namespace xformers::cuda {
namespace {
// Of the parts' statistics, in units of 16 bytes, since results come behind them.
size_t stats_bytes(int64_t splits, int64_t rows) {
  return (static_cast<size_t>(splits * rows) * sizeof(PartStats) + 15) / 16 * 16;
}
}  // namespace

FwdArgs forward_args(const AttentionFwdParams& p) {
  FwdArgs args;
  args.p = p;
  args.scale_log2 = static_cast<float>(p.softmax_scale * kLog2eDouble);
  args.kept = p.dropout.p < 1 ? 1 / (1 - p.dropout.p) : 0;
  args.drop_rule = drop_rule(p.dropout.p);
  return args;
}

FwdArgs forward_args(const AttentionFwdParams& p, const FwdFacts& facts) {
  FwdArgs args = forward_args(p);
  args.packed_heads = Divisor<uint32_t>(facts.packed_heads);
  args.aligned_q = facts.q == RowAccess::kChunks;
  args.aligned_kv = facts.kv == RowAccess::kChunks;
  args.aligned_out = facts.out_pairs;
  args.chunked_out = facts.out == RowAccess::kChunks;
  return args;
}

size_t partial_bytes(const AttentionFwdParams& p, int64_t total_rows, int64_t splits) {
  if (splits == 1) return 0;
  return stats_bytes(splits, total_rows) +
         static_cast<size_t>(splits * total_rows * p.shape.head_dim_v) * sizeof(float);
}

void set_partial_results(FwdArgs& args, int64_t total_rows, int64_t splits, const Stream& stream) {
  args.num_splits = static_cast<int>(splits);
  args.total_rows = total_rows;
  if (splits == 1) return;
  char* const memory = static_cast<char*>(stream.workspace);
  args.stats_partial = reinterpret_cast<PartStats*>(memory);
  args.out_partial = reinterpret_cast<float*>(memory + stats_bytes(splits, total_rows));
}

size_t statistics_bytes(const AttentionBwdParams& p) {
  return static_cast<size_t>(
      (p.shape.batch * p.shape.num_heads() * p.shape.seqlen_q * (p.shape.dtype == DType::kFloat64 ? 8 : 4) + 255) /
      256 * 256);
}

BwdArgs backward_args(const AttentionBwdParams& p, const Stream& stream) {
  BwdArgs args;
  args.p = p;
  args.scale = static_cast<float>(p.softmax_scale);
  args.scale_log2 = static_cast<float>(p.softmax_scale * kLog2eDouble);
  args.kept = p.dropout.p < 1 ? 1 / (1 - p.dropout.p) : 0;
  args.drop_rule = drop_rule(p.dropout.p);
  args.lse = stream.workspace;
  args.delta = static_cast<char*>(stream.workspace) + statistics_bytes(p);
  return args;
}

void set_drop_factors(BwdArgs& args) {
  const double p = args.p.dropout.p;
  if (p >= 1) return;  // no P is kept, and there is nothing to multiply
  args.lse_shift = -std::log2(1 - p);
  args.delta_factor = 1 - p;
}

void begin_backward(const BwdArgs& args, double lse_factor, const Stream& stream, void* zeros, size_t zero_bytes) {
  const AttentionBwdParams& p = args.p;
  prepare_backward(args, lse_factor, zeros, zero_bytes, to_stream(stream));
  sum_sink_gradients(args, to_stream(stream));
  const bool sees_all = p.band.window_left == kUnbounded && p.band.window_right == kUnbounded && !p.blocks.present();
  // Else every element is written; of packed sequences the caller has zeros.
  if (p.dbias.data && !sees_all && !p.seq.packed()) clear_bias_gradient(p, to_stream(stream));
  if (!args.key_queries) clear_uncovered_gradients(p, to_stream(stream));  // else tiles cover all rows
}

}  // namespace xformers::cuda
