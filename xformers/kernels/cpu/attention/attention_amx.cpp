// bf16 by AMX tiles; fp16 and fp32 too, as sums of two and three bf16 numbers: 3 and 6 tile products cost less than one
// on fp32 vectors.
#include "xformers/kernels/cpu/attention/decode_tile-inl.h"
#include "xformers/kernels/cpu/attention/isa_kernels.h"
#include "xformers/kernels/cpu/attention/run-inl.h"
#include "xformers/kernels/cpu/gemm/engine_amx-inl.h"

namespace xformers::cpu::isa_amx {

void forward(const AttentionFwdParams& params, const ForwardPlan& plan, const Threads& threads) {
  switch (params.shape.dtype) {
    case DType::kFloat32: return run_forward<Forward<Bf16Gemm<float, AmxEngine>>>(params, plan, threads);
    case DType::kBFloat16: return run_forward<Forward<Bf16Gemm<BFloat16, AmxEngine>>>(params, plan, threads);
    case DType::kFloat16: return run_forward<Forward<Bf16Gemm<Float16, AmxEngine>>>(params, plan, threads);
    case DType::kFloat64: return;  // not in this kernel's list of dtypes
  }
}
void decode(const AttentionFwdParams& params, const ForwardPlan& plan, const Threads& threads) {
  run_forward<DecodeTile>(params, plan, threads);
}
void backward(const AttentionBwdParams& params, const BackwardPlan& plan, const Threads& threads) {
  switch (params.shape.dtype) {
    case DType::kFloat32: return run_backward<Bf16Gemm<float, AmxEngine>>(params, plan, threads);
    case DType::kBFloat16: return run_backward<Bf16Gemm<BFloat16, AmxEngine>>(params, plan, threads);
    case DType::kFloat16: return run_backward<Bf16Gemm<Float16, AmxEngine>>(params, plan, threads);
    case DType::kFloat64: return;
  }
}

}  // namespace xformers::cpu::isa_amx
