#include "xformers/kernels/cuda/attention/kernels.h"

#include "xformers/kernels/cuda/attention/decode/choice.h"
#include "xformers/kernels/cuda/attention/simt/choice.h"
#include "xformers/kernels/cuda/attention/sm80/choice.h"
#include "xformers/kernels/cuda/attention/sm80_fp32/choice.h"
#include "xformers/kernels/cuda/attention/sm90/choice.h"

namespace xformers::cuda {
namespace {

constexpr Features kDecoding = {.keys = kPagedKeys, .score_ops = kSignedScaleOp | kModifyOps},
                   kHopper = {.keys = kPagedKeys}, kHopperScored = {.score_ops = kAllScoreOps},
                   kFp32 = {.rows = RowAccess::kAny, .keys = kBlockedKeys, .score_ops = kAllScoreOps};

constexpr ForwardKernel kForward[] = {
    {"fwd_decode", kDecoding, decode::plan, decode::run},
    {"fwd_sm90", kHopper, sm90::plan_forward, sm90::run_forward},
    {"fwd_sm90_scored", kHopperScored, sm90::plan_forward, sm90::run_forward},
    {"fwd_sm90_blocked", Features::kBlocked, sm90::plan_forward, sm90::run_forward},
    {"fwd_sm80", Features::kPlain, sm80::plan_forward, sm80::run_forward},
    {"fwd_sm80_blocked", Features::kBlocked, sm80::plan_forward, sm80::run_forward},
    {"fwd_sm80_scored", Features::kScored, sm80::plan_forward, sm80::run_forward},
    {"fwd_sm80_modified", Features::kModified, sm80::plan_forward, sm80::run_forward},
    {"fwd_sm80_general", Features::kGeneral, sm80::plan_forward, sm80::run_forward},
    {"fwd_sm80_fp32", kFp32, sm80_fp32::plan_forward, sm80_fp32::run_forward},
    {"fwd_simt", Features::kGeneral, simt::plan_forward, simt::run_forward},
};

constexpr BackwardKernel kBackward[] = {
    {"bwd_sm90", sm90::plan_backward, sm90::run_backward},
    {"bwd_sm80", sm80::plan_backward, sm80::run_backward},
    {"bwd_sm80_fp32", sm80_fp32::plan_backward, sm80_fp32::run_backward},
    {"bwd_simt", simt::plan_backward, simt::run_backward},
};

const KernelNames kNames(kForward, kBackward);

}  // namespace

std::span<const ForwardKernel> forward_list() { return kForward; }
std::span<const BackwardKernel> backward_list() { return kBackward; }

}  // namespace xformers::cuda
