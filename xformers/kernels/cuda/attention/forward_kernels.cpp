#include "xformers/kernels/cuda/attention/forward_kernels.h"

#include "xformers/kernels/cuda/attention/call_facts.h"
#include "xformers/kernels/cuda/attention/decode/decode_choice.h"
#include "xformers/kernels/cuda/attention/fwd_plan.h"
#include "xformers/kernels/cuda/attention/instance_choice.h"
#include "xformers/kernels/cuda/attention/passes.h"
#include "xformers/kernels/cuda/attention/sm80/fwd_policy.h"
#include "xformers/kernels/cuda/attention/sm80_fp32/fp32_choice.h"
#include "xformers/kernels/cuda/attention/split_merge.h"

namespace xformers::cuda {
namespace {

size_t no_workspace(const AttentionFwdParams&) { return 0; }

void require_forward(const AttentionFwdParams& p, Features features, Reasons& reasons) {
  require_instance(
      built_forward(), p.shape, false, [&](int head_dim) { return sm80::fwd_policy(head_dim, features).smem_bytes(); },
      reasons);
}

// What neither fwd_sm80 nor fwd_sm80_scored takes.
void why_not_fast(const AttentionFwdParams& p, Features features, Reasons& reasons) {
  require_forward(p, features, reasons);
  if (p.seq.paged()) reasons.add("paged keys");
  if (p.quantization.format != KvFormat::kPlain) {
    reasons.add("quantised keys");
  } else if (!q_aligned(p) || !kv_aligned(p)) {
    reasons.add("rows of q, k or v are not in units of 16 bytes");
  }
}

void why_not_fwd_sm80(const AttentionFwdParams& p, Reasons& reasons) {
  if (p.mods.bias.data) reasons.add("bias");
  if (p.dropout.p > 0) reasons.add("dropout");
  if (!(p.softmax_scale > 0)) reasons.add("softmax_scale is not positive");
  why_not_fast(p, Features::kPlain, reasons);
}
void why_not_fwd_sm80_scored(const AttentionFwdParams& p, Reasons& reasons) {
  if (!bias_aligned(p.mods.bias, p.shape, 8)) reasons.add("rows of the bias are not in units of 16 bytes");
  why_not_fast(p, Features::kScored, reasons);
}

void why_not_fwd_sm80_general(const AttentionFwdParams& p, Reasons& reasons) {
  require_forward(p, Features::kGeneral, reasons);
}

template <Features kFeatures>
size_t forward_workspace(const AttentionFwdParams& p) {
  return partial_bytes(p, plan_splits(p, find_instance(built_forward(), p.shape)->head_dim, kFeatures).splits);
}
template <Features kFeatures>
void run_forward(const AttentionFwdParams& p, const Stream& stream) {
  const auto* instance = find_instance(built_forward(), p.shape);
  const SplitPlan plan = plan_splits(p, instance->head_dim, kFeatures);
  FwdArgs args = half_forward_args(p);
  set_partial_results(args, plan.splits, stream);
  args.part_steps = plan.part_steps;
  if (args.out_partial) {
    if (p.seq.packed()) clear_partial_stats(args, to_stream(stream));  // the merge writes what no sequence covers
  } else {
    clear_uncovered_results(p, to_stream(stream));
  }
  instance->launch(args, kFeatures, to_stream(stream));
  if (args.out_partial) merge_splits(args, false, to_stream(stream));
}

void nothing_against(const AttentionFwdParams&, Reasons&) {}
void run_fwd_simt(const AttentionFwdParams& p, const Stream& stream) {
  const FwdArgs args = forward_args(p);
  clear_uncovered_results(p, to_stream(stream));
  switch (p.shape.dtype) {
    case DType::kFloat32: return simt::launch_forward<fp32>(args, to_stream(stream));
    case DType::kFloat64: return simt::launch_forward<fp64>(args, to_stream(stream));
    case DType::kBFloat16: return simt::launch_forward<bf16>(args, to_stream(stream));
    case DType::kFloat16: return simt::launch_forward<fp16>(args, to_stream(stream));
  }
}

}  // namespace

const KernelList<AttentionFwdParams>& forward_list() {
  static const KernelList<AttentionFwdParams> list = {
      {"fwd_decode", decode::why_not, decode::workspace, decode::run},
      {"fwd_sm80", why_not_fwd_sm80, forward_workspace<Features::kPlain>, run_forward<Features::kPlain>},
      {"fwd_sm80_scored", why_not_fwd_sm80_scored, forward_workspace<Features::kScored>,
       run_forward<Features::kScored>},
      {"fwd_sm80_general", why_not_fwd_sm80_general, forward_workspace<Features::kGeneral>,
       run_forward<Features::kGeneral>},
      {"fwd_sm80_fp32", sm80_fp32::why_not_forward, no_workspace, sm80_fp32::run_forward},
      {"fwd_simt", nothing_against, no_workspace, run_fwd_simt},
  };
  return list;
}

}  // namespace xformers::cuda
