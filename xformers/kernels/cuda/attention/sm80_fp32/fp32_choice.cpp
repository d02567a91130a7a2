#include "xformers/kernels/cuda/attention/sm80_fp32/fp32_choice.h"

#include "xformers/kernels/cuda/attention/backward_kernels.h"
#include "xformers/kernels/cuda/attention/call_facts.h"
#include "xformers/kernels/cuda/attention/instance_choice.h"
#include "xformers/kernels/cuda/attention/passes.h"
#include "xformers/kernels/cuda/attention/sm80_fp32/policy.h"
#include "xformers/kernels/cuda/attention/tiles.h"
#include "xformers/kernels/cuda/base/cuda_check.h"

namespace xformers::cuda::sm80_fp32 {
namespace {

int64_t query_blocks(const AttentionBwdParams& p, int head_dim) {
  return max_tiles(p.shape.seqlen_q, p.seq, bwd_policy(head_dim, true).block_m);
}
size_t turns_bytes(const AttentionBwdParams& p, int64_t blocks) {
  return p.deterministic ? static_cast<size_t>(blocks * p.shape.batch * p.shape.num_heads()) * sizeof(int) : 0;
}

}  // namespace

void why_not_forward(const AttentionFwdParams& p, Reasons& reasons) {
  require_instance(
      built_forward(), p.shape, true, [](int head_dim) { return fwd_policy(head_dim, true).smem_bytes(); }, reasons);
  if (p.seq.paged()) reasons.add("paged keys");
  if (p.quantization.format != KvFormat::kPlain) reasons.add("quantised keys");
}

void run_forward(const AttentionFwdParams& p, const Stream& stream) {
  const AttentionShape& s = p.shape;
  FwdArgs args = forward_args(p);
  args.packed_heads = packed_heads(p);
  args.aligned_q = fp32_rows_of_16_bytes(p.q, s, s.seqlen_q, s.head_dim);
  args.aligned_kv =
      fp32_rows_of_16_bytes(p.k, s, s.seqlen_k, s.head_dim) && fp32_rows_of_16_bytes(p.v, s, s.seqlen_k, s.head_dim_v);
  args.aligned_out = fp32_rows_of_16_bytes(p.out, s, s.seqlen_q, s.head_dim_v);
  const bool plain = !p.mods.bias.data && p.dropout.p == 0 && p.softmax_scale > 0;
  clear_uncovered_results(p, to_stream(stream));
  find_instance(built_forward(), s)->launch(args, plain ? Features::kPlain : Features::kScored, to_stream(stream));
}

void why_not_backward(const AttentionBwdParams& p, Reasons& reasons) {
  require_instance(
      built_backward(), p.shape, true, [](int head_dim) { return bwd_policy(head_dim, true).smem_bytes(); }, reasons);
}

size_t backward_workspace(const AttentionBwdParams& p) {
  return 2 * statistics_bytes(p) + turns_bytes(p, query_blocks(p, find_instance(built_backward(), p.shape)->head_dim));
}

void run_backward(const AttentionBwdParams& p, const Stream& stream) {
  const AttentionShape& s = p.shape;
  const auto* instance = find_instance(built_backward(), s);
  BwdArgs args = backward_args(p, stream);
  args.query_blocks = query_blocks(p, instance->head_dim);
  args.aligned = true;
  for (const HeadsTensor* t : {&p.q, &p.dq}) args.aligned &= fp32_rows_of_16_bytes(*t, s, s.seqlen_q, s.head_dim);
  for (const HeadsTensor* t : {&p.k, &p.dk}) args.aligned &= fp32_rows_of_16_bytes(*t, s, s.seqlen_k, s.head_dim);
  for (const HeadsTensor* t : {&p.v, &p.dv}) args.aligned &= fp32_rows_of_16_bytes(*t, s, s.seqlen_k, s.head_dim_v);
  args.aligned &= fp32_rows_of_16_bytes(p.dout, s, s.seqlen_q, s.head_dim_v);
  if (const size_t bytes = turns_bytes(p, args.query_blocks); bytes > 0) {
    args.turns = reinterpret_cast<int*>(static_cast<char*>(stream.workspace) + 2 * statistics_bytes(p));
    XFORMERS_CUDA_CHECK(cudaMemsetAsync(args.turns, 0, bytes, to_stream(stream)));
  }
  begin_backward(args, kLog2eDouble, stream);
  const bool plain = !p.mods.bias.data && p.dropout.p == 0;
  instance->launch(args, plain ? Features::kPlain : Features::kScored, to_stream(stream));
}

}  // namespace xformers::cuda::sm80_fp32
