#include "xformers/kernels/cpu/linear_attention/linear_attention_cpu.h"

#include <string>

#include "xformers/kernels/base/check.h"
#include "xformers/kernels/cpu/base/isa_fn.h"
#include "xformers/kernels/params/checks.h"

namespace xformers::cpu {

XFORMERS_DECLARE_FOR_ISAS(void linear_attention_forward(const LinearAttentionFwdParams& params, const Threads& threads);
                          void linear_attention_backward(const LinearAttentionBwdParams& params,
                                                         const Threads& threads);)

namespace {

// Offsets are looked at before anything is read by them.
void check_offsets(const LinearAttentionShape& shape) {
  for (int64_t s = 0; shape.cu_seqlens && s <= shape.num_sequences; ++s) {
    const int64_t offset = shape.cu_seqlens[s], before = s == 0 ? 0 : shape.cu_seqlens[s - 1];
    const bool ends = s == 0 ? offset == 0 : s < shape.num_sequences || offset == shape.seqlen_q;
    if (offset >= before && offset <= shape.seqlen_q && ends) continue;
    fail({.where = "linear_attention",
          .name = "cu_seqlens[" + std::to_string(s) + "]",
          .got = std::to_string(offset),
          .expected = "offsets that rise from 0 to the " + std::to_string(shape.seqlen_q) + " tokens",
          .fix = "sequence s owns the tokens from cu_seqlens[s] on, before cu_seqlens[s + 1]"});
  }
}

}  // namespace

void linear_attention_forward(const LinearAttentionFwdParams& params, const Threads& threads) {
  check(params);
  check_offsets(params.shape);
  XFORMERS_BY_PLAIN_ISA(linear_attention_forward)(params, threads);
}

void linear_attention_backward(const LinearAttentionBwdParams& params, const Threads& threads) {
  check(params);
  check_offsets(params.shape);
  XFORMERS_BY_PLAIN_ISA(linear_attention_backward)(params, threads);
}

}  // namespace xformers::cpu
