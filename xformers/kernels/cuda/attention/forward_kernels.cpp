#include "xformers/kernels/cuda/attention/forward_kernels.h"

#include "xformers/kernels/cuda/attention/call_facts.h"
#include "xformers/kernels/cuda/attention/decode/decode_choice.h"
#include "xformers/kernels/cuda/attention/instance_choice.h"
#include "xformers/kernels/cuda/attention/passes.h"
#include "xformers/kernels/cuda/attention/sm80/fwd_policy.h"
#include "xformers/kernels/cuda/attention/sm80_fp32/fp32_choice.h"

namespace xformers::cuda {
namespace {

size_t no_workspace(const AttentionFwdParams&) { return 0; }

// Splits that fill the GPU twice over, for the general kernel.
int64_t choose_splits(const AttentionFwdParams& p) {
  constexpr int64_t kMinKeysPerSplit = 256;  // below this, merging costs more than the split gains
  constexpr int64_t kMostSplits = 128;
  constexpr int kBlockM = sm80::fwd_policy(128, Features::kGeneral).block_m();
  if (p.num_splits > 0) return std::min(p.num_splits, kMostSplits);
  const int64_t keys = p.seq.paged() ? p.seq.pages.max_pages * p.seq.pages.page_size : p.shape.seqlen_k;
  const int64_t blocks = std::max<int64_t>(row_tiles(p, kBlockM), 1);
  const int64_t wanted = (2 * current_device().multiprocessors + blocks - 1) / blocks;
  return std::clamp<int64_t>(std::min(wanted, keys / kMinKeysPerSplit), 1, kMostSplits);
}

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
  if (p.num_splits > 1) reasons.add("num_splits is ", p.num_splits);
  if (p.num_splits == 0 && !reasons.any() && choose_splits(p) > 1 &&
      row_tiles(p, sm80::fwd_policy(128, features).block_m()) < current_device().multiprocessors) {
    reasons.add("few queries: splitting the keys fills the GPU");
  }
}

void why_not_fwd_sm80(const AttentionFwdParams& p, Reasons& reasons) {
  if (p.bias.data) reasons.add("bias");
  if (p.dropout.p > 0) reasons.add("dropout");
  if (!(p.softmax_scale > 0)) reasons.add("softmax_scale is not positive");
  why_not_fast(p, Features::kPlain, reasons);
}
void why_not_fwd_sm80_scored(const AttentionFwdParams& p, Reasons& reasons) {
  if (!bias_aligned(p.bias, p.shape, 8)) reasons.add("rows of the bias are not in units of 16 bytes");
  why_not_fast(p, Features::kScored, reasons);
}
template <Features kFeatures>
void run_fwd_fast(const AttentionFwdParams& p, const Stream& stream) {
  clear_uncovered_results(p, to_stream(stream));
  find_instance(built_forward(), p.shape)->launch(half_forward_args(p), kFeatures, to_stream(stream));
}

void why_not_fwd_sm80_general(const AttentionFwdParams& p, Reasons& reasons) {
  require_forward(p, Features::kGeneral, reasons);
}
size_t fwd_general_workspace(const AttentionFwdParams& p) { return partial_bytes(p, choose_splits(p)); }
void run_fwd_sm80_general(const AttentionFwdParams& p, const Stream& stream) {
  FwdArgs args = half_forward_args(p);
  set_partial_results(args, choose_splits(p), stream);
  const auto* instance = find_instance(built_forward(), p.shape);
  clear_uncovered_results(p, to_stream(stream));
  if (args.out_partial && p.seq.packed()) clear_partial_lse(args, to_stream(stream));
  instance->launch(args, Features::kGeneral, to_stream(stream));
  if (args.out_partial) merge_splits(args, to_stream(stream));
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
      {"fwd_sm80", why_not_fwd_sm80, no_workspace, run_fwd_fast<Features::kPlain>},
      {"fwd_sm80_scored", why_not_fwd_sm80_scored, no_workspace, run_fwd_fast<Features::kScored>},
      {"fwd_sm80_general", why_not_fwd_sm80_general, fwd_general_workspace, run_fwd_sm80_general},
      {"fwd_sm80_fp32", sm80_fp32::why_not_forward, no_workspace, sm80_fp32::run_forward},
      {"fwd_simt", nothing_against, no_workspace, run_fwd_simt},
  };
  return list;
}

}  // namespace xformers::cuda
