// fp16 on fp16 multiply-adds, where their rounding does not show (gemm_fp16-inl.h).
#include "xformers/kernels/cpu/attention/isa_kernels.h"
#include "xformers/kernels/cpu/attention/run-inl.h"
#include "xformers/kernels/cpu/gemm/gemm_fp16-inl.h"

namespace xformers::cpu::isa_avx512_fp16 {

void forward(const AttentionFwdParams& params, const ForwardPlan& plan, const Threads& threads) {
  run_forward<Forward<Fp16Gemm>>(params, plan, threads);
}
void backward(const AttentionBwdParams& params, const BackwardPlan& plan, const Threads& threads) {
  run_backward<Fp16Gemm>(params, plan, threads);
}

}  // namespace xformers::cpu::isa_avx512_fp16
