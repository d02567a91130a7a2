#define XFORMERS_ISA_NAMESPACE isa_avx2
#include "xformers/kernels/cpu/attention/isa_kernels.h"
#include "xformers/kernels/cpu/attention/run-inl.h"
#include "xformers/kernels/cpu/gemm/gemm_fma-inl.h"

namespace xformers::cpu::isa_avx2 {

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

}  // namespace xformers::cpu::isa_avx2
