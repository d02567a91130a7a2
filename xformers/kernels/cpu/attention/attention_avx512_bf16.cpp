// bf16 by vdpbf16ps: the processors where that beats widening to fp32 (AMD; on Intel it is slower, see
// attention_cpu.cpp).
#include "xformers/kernels/cpu/attention/decode_dpbf16-inl.h"
#include "xformers/kernels/cpu/attention/isa_kernels.h"
#include "xformers/kernels/cpu/attention/run-inl.h"
#include "xformers/kernels/cpu/gemm/engine_dpbf16-inl.h"

namespace xformers::cpu::isa_avx512_bf16 {

void forward(const AttentionFwdParams& params, const ForwardPlan& plan, const Threads& threads) {
  run_forward<Forward<Bf16Gemm<BFloat16, Dpbf16Engine>>>(params, plan, threads);
}
void decode(const AttentionFwdParams& params, const ForwardPlan& plan, const Threads& threads) {
  run_forward<Decode<BFloat16, Dpbf16Products>>(params, plan, threads);
}
void backward(const AttentionBwdParams& params, const BackwardPlan& plan, const Threads& threads) {
  run_backward<Bf16Gemm<BFloat16, Dpbf16Engine>>(params, plan, threads);
}

}  // namespace xformers::cpu::isa_avx512_bf16
