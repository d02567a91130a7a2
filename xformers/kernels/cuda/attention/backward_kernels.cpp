#include "xformers/kernels/cuda/attention/backward_kernels.h"

#include <cmath>

#include "xformers/kernels/cuda/attention/bwd_passes.h"
#include "xformers/kernels/cuda/attention/bwd_plan.h"
#include "xformers/kernels/cuda/attention/call_facts.h"
#include "xformers/kernels/cuda/attention/instance_choice.h"
#include "xformers/kernels/cuda/attention/passes.h"
#include "xformers/kernels/cuda/attention/sm80/bwd_policy.h"
#include "xformers/kernels/cuda/attention/sm80_fp32/fp32_choice.h"

namespace xformers::cuda {
namespace {

bool aligned_backward(const AttentionBwdParams& p) {
  const AttentionShape& s = p.shape;
  return rows_of_16_bytes(p.q, s, s.seqlen_q, s.head_dim) && rows_of_16_bytes(p.k, s, s.seqlen_k, s.head_dim) &&
         rows_of_16_bytes(p.v, s, s.seqlen_k, s.head_dim_v) && rows_of_16_bytes(p.dout, s, s.seqlen_q, s.head_dim_v);
}
Features backward_features(const AttentionBwdParams& p) {
  if (!aligned_backward(p) || !bias_aligned(p.mods.bias, p.shape, 8) || !bias_aligned(p.dbias, p.shape, 2)) {
    return Features::kGeneral;
  }
  return p.mods.bias.data || p.dropout.p > 0 ? Features::kScored : Features::kPlain;
}

void why_not_bwd_sm80(const AttentionBwdParams& p, Reasons& reasons) {
  require_instance(
      built_backward(), p.shape, false,
      [](int head_dim) { return sm80::bwd_policy(head_dim, Features::kGeneral, false).smem_bytes(); }, reasons);
}
size_t bwd_sm80_workspace(const AttentionBwdParams& p) {
  const int head_dim = find_instance(built_backward(), p.shape)->head_dim;
  return 2 * statistics_bytes(p) + plan_backward(p, head_dim, backward_features(p)).bytes();
}
void run_bwd_sm80(const AttentionBwdParams& p, const Stream& stream) {
  const AttentionShape& s = p.shape;
  const auto* instance = find_instance(built_backward(), s);
  const Features features = backward_features(p);
  const BwdPlan plan = plan_backward(p, instance->head_dim, features);
  BwdArgs args = backward_args(p, stream);
  if (p.dropout.p < 1) {  // else no P is kept, and there is nothing to multiply
    args.lse_shift = -std::log2(1 - p.dropout.p);
    args.delta_factor = 1 - p.dropout.p;
  }
  args.aligned = aligned_backward(p);
  args.aligned_dq = rows_of_16_bytes(p.dq, s, s.seqlen_q, s.head_dim);
  args.aligned_dkv =
      rows_of_16_bytes(p.dk, s, s.seqlen_k, s.head_dim) && rows_of_16_bytes(p.dv, s, s.seqlen_k, s.head_dim_v);
  args.aligned_dbias = bias_aligned(p.dbias, s, 8);
  char* const memory = static_cast<char*>(stream.workspace) + 2 * statistics_bytes(p);
  apply_plan(plan, memory, args);
  begin_backward(args, kLog2eDouble, stream, memory, plan.zero_bytes());
  instance->launch(args, features, to_stream(stream));
}

void nothing_against(const AttentionBwdParams&, Reasons&) {}
size_t bwd_simt_workspace(const AttentionBwdParams& p) { return 2 * statistics_bytes(p); }
void run_bwd_simt(const AttentionBwdParams& p, const Stream& stream) {
  const BwdArgs args = backward_args(p, stream);
  begin_backward(args, 1, stream);
  switch (p.shape.dtype) {
    case DType::kFloat32: return simt::launch_backward<fp32>(args, to_stream(stream));
    case DType::kFloat64: return simt::launch_backward<fp64>(args, to_stream(stream));
    case DType::kBFloat16: return simt::launch_backward<bf16>(args, to_stream(stream));
    case DType::kFloat16: return simt::launch_backward<fp16>(args, to_stream(stream));
  }
}

}  // namespace

const KernelList<AttentionBwdParams>& backward_list() {
  static const KernelList<AttentionBwdParams> list = {
      {"bwd_sm80", why_not_bwd_sm80, bwd_sm80_workspace, run_bwd_sm80},
      {"bwd_sm80_fp32", sm80_fp32::why_not_backward, sm80_fp32::backward_workspace, sm80_fp32::run_backward},
      {"bwd_simt", nothing_against, bwd_simt_workspace, run_bwd_simt},
  };
  return list;
}

size_t statistics_bytes(const AttentionBwdParams& p) {
  return static_cast<size_t>((total_rows(p.shape) * (p.shape.dtype == DType::kFloat64 ? 8 : 4) + 255) / 256 * 256);
}

BwdArgs backward_args(const AttentionBwdParams& p, const Stream& stream) {
  BwdArgs args;
  args.p = p;
  args.scale_log2 = static_cast<float>(p.softmax_scale * kLog2eDouble);
  args.kept = p.dropout.p < 1 ? 1 / (1 - p.dropout.p) : 0;
  args.drop_rule = drop_rule(p.dropout.p);
  args.lse = stream.workspace;
  args.delta = static_cast<char*>(stream.workspace) + statistics_bytes(p);
  return args;
}

void begin_backward(const BwdArgs& args, double lse_factor, const Stream& stream, void* zeros, size_t zero_bytes) {
  const AttentionBwdParams& p = args.p;
  prepare_backward(args, lse_factor, zeros, zero_bytes, to_stream(stream));
  const bool sees_all = p.band.window_left == kUnbounded && p.band.window_right == kUnbounded;
  if (p.dbias.data && !sees_all) clear_bias_gradient(p, to_stream(stream));  // else every element is written
  clear_uncovered_gradients(p, to_stream(stream));
}

}  // namespace xformers::cuda
