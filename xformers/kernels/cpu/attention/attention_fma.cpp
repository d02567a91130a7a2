// The instruction sets that multiply in fp32 (or fp64) on plain vectors. Compiled once for each, with its flags and
// -DXFORMERS_ISA_NAMESPACE=isa_portable, isa_avx2, isa_avx512.
#include "xformers/kernels/cpu/attention/isa_kernels.h"
#include "xformers/kernels/cpu/attention/run-inl.h"
#include "xformers/kernels/cpu/gemm/gemm_fma-inl.h"

namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

template <class T>
struct GemmFor {
  using type = FmaGemm<T>;
};

void forward(const AttentionFwdParams& params, const ForwardPlan& plan, const Threads& threads) {
  forward_any<GemmFor>(params, plan, threads);
}
void decode(const AttentionFwdParams& params, const ForwardPlan& plan, const Threads& threads) {
  decode_any(params, plan, threads);
}
void backward(const AttentionBwdParams& params, const BackwardPlan& plan, const Threads& threads) {
  backward_any<GemmFor>(params, plan, threads);
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
