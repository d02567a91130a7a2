#include "xformers/kernels/cpu/attention/attention_cpu.h"

#include <optional>

#include "xformers/kernels/base/kernel_list.h"
#include "xformers/kernels/cpu/attention/isa_kernels.h"
#include "xformers/kernels/cpu/attention/uncovered.h"
#include "xformers/kernels/cpu/base/isa_fn.h"
#include "xformers/kernels/params/attention_check.h"

namespace xformers::cpu {
namespace {

constexpr unsigned bit(DType dtype) { return 1u << static_cast<unsigned>(dtype); }
constexpr unsigned kAllDTypes =
    bit(DType::kFloat32) | bit(DType::kFloat64) | bit(DType::kBFloat16) | bit(DType::kFloat16);

// One row of a kernel list. Fn is ForwardFn or BackwardFn.
template <class Fn>
struct Kernel {
  const char* name;
  Isa isa;
  unsigned dtypes;
  int64_t most_rows;     // decode kernels: how many rows may share their keys (no dropout either); 0: no limit
  bool (*when_asked)();  // true: only if XFORMERS_KERNEL or XFORMERS_CPU_ISA asks for it; null: always
  Fn run;
};

// On Intel's cores vdpbf16ps has half the rate of fp32 FMA (measured: 85 against 175 GFLOP/s a core), so bf16 is
// widened instead; other vendors' cores run it at twice the fp32 rate.
bool slow_bf16_dot() { return cpu_features().is_intel; }

constexpr unsigned kAmxDTypes = kAllDTypes & ~bit(DType::kFloat64), kBf16 = bit(DType::kBFloat16),
                   kFp16 = bit(DType::kFloat16);

// Best first; the last one takes everything. The avx512_fp16 rows serve machines without AMX: only the products with
// probabilities are in fp16, the rest of the time goes to fp32. Speed against avx512 on one busy core, median of six
// paired runs: head_dim 128, forward x1.09 (1.02 ... 1.24), backward x1.13 (1.09 ... 1.18); head_dim 64, x1.03 (1.00
// ... 1.13) and x1.07 (1.03 ... 1.10).
constexpr Kernel<ForwardFn> kForward[] = {
    {"decode_amx", Isa::kAmx, kBf16, 16, nullptr, XFORMERS_ISA_FN(amx, decode)},
    {"decode_avx512_bf16", Isa::kAvx512Bf16, kBf16, 8, slow_bf16_dot, XFORMERS_ISA_FN(avx512_bf16, decode)},
    {"decode_avx512", Isa::kAvx512, kAllDTypes, 8, nullptr, XFORMERS_ISA_FN(avx512, decode)},
    {"fwd_amx", Isa::kAmx, kAmxDTypes, 0, nullptr, XFORMERS_ISA_FN(amx, forward)},
    {"fwd_avx512_fp16", Isa::kAvx512Fp16, kFp16, 0, nullptr, XFORMERS_ISA_FN(avx512_fp16, forward)},
    {"fwd_avx512_bf16", Isa::kAvx512Bf16, kBf16, 0, slow_bf16_dot, XFORMERS_ISA_FN(avx512_bf16, forward)},
    {"fwd_avx512", Isa::kAvx512, kAllDTypes, 0, nullptr, XFORMERS_ISA_FN(avx512, forward)},
    {"decode_avx2", Isa::kAvx2, kAllDTypes, 8, nullptr, XFORMERS_ISA_FN(avx2, decode)},
    {"fwd_avx2", Isa::kAvx2, kAllDTypes, 0, nullptr, XFORMERS_ISA_FN(avx2, forward)},
    {"decode_portable", Isa::kPortable, kAllDTypes, 8, nullptr, XFORMERS_ISA_FN(portable, decode)},
    {"fwd_portable", Isa::kPortable, kAllDTypes, 0, nullptr, XFORMERS_ISA_FN(portable, forward)},
};

constexpr Kernel<BackwardFn> kBackward[] = {
    {"bwd_amx", Isa::kAmx, kAmxDTypes, 0, nullptr, XFORMERS_ISA_FN(amx, backward)},
    {"bwd_avx512_fp16", Isa::kAvx512Fp16, kFp16, 0, nullptr, XFORMERS_ISA_FN(avx512_fp16, backward)},
    {"bwd_avx512_bf16", Isa::kAvx512Bf16, kBf16, 0, slow_bf16_dot, XFORMERS_ISA_FN(avx512_bf16, backward)},
    {"bwd_avx512", Isa::kAvx512, kAllDTypes, 0, nullptr, XFORMERS_ISA_FN(avx512, backward)},
    {"bwd_avx2", Isa::kAvx2, kAllDTypes, 0, nullptr, XFORMERS_ISA_FN(avx2, backward)},
    {"bwd_portable", Isa::kPortable, kAllDTypes, 0, nullptr, XFORMERS_ISA_FN(portable, backward)},
};

const KernelNames kNames(kForward, kBackward);

thread_local std::string_view last_forward, last_backward;

template <class Fn>
void why_not(const Kernel<Fn>& kernel, const AttentionProblem& problem, Reasons& reasons) {
  if (!kernel.run) reasons.add("XFORMERS_CPU_ISAS left ", name_of(kernel.isa), " out of this build");
  if (!has_isa(kernel.isa)) reasons.add("this processor has no ", name_of(kernel.isa));
  if (!(kernel.dtypes & bit(problem.shape.dtype))) reasons.add("dtype is ", name_of(problem.shape.dtype));
}

void why_not(const Kernel<ForwardFn>& kernel, const AttentionFwdParams& params, Reasons& reasons) {
  why_not<ForwardFn>(kernel, params, reasons);
  if (kernel.most_rows == 0) return;
  if (const int64_t rows = rows_per_key(params); rows > kernel.most_rows) {
    reasons.add(rows, " rows (queries x heads of a group) share their keys, expected at most ", kernel.most_rows);
  }
  if (params.dropout.p > 0) reasons.add("dropout");
  if (params.blocks.present() && kernel.isa == Isa::kAmx) reasons.add("a block mask: its tiles of keys are neighbours");
}

// XFORMERS_CPU_ISA's objections; where a kernel of the list is forced, there are none.
template <class Fn>
void why_not_here(const Kernel<Fn>& kernel, std::optional<Isa> isa, Reasons& reasons) {
  if (isa && *isa < kernel.isa) reasons.add("XFORMERS_CPU_ISA asks for ", name_of(*isa), " or less");
  if (isa != kernel.isa && kernel.when_asked && kernel.when_asked()) {
    reasons.add("slower than fp32 on this processor");
  }
}

// The kernel that runs, and make_plan(kernel).
template <class List, class Params, class MakePlan>
auto choose_kernel(const List& list, const Params& params, const MakePlan& make_plan) {
  const std::optional<Isa> isa = isa_limit("attention");
  const bool forced = has_kernel(list, forced_kernel());
  return choose("attention: no CPU kernel", list, [&](const auto& kernel, Reasons& reasons) {
    why_not(kernel, params, reasons);
    if (!forced) why_not_here(kernel, isa, reasons);
    return reasons.any() ? std::nullopt : std::optional(make_plan(kernel));
  });
}

template <class List, class Params>
std::vector<std::string> reasons_against(const List& list, std::string_view name, const Params& params) {
  return reasons_of(list, name, [&](const auto& kernel, Reasons& reasons) { why_not(kernel, params, reasons); });
}

}  // namespace

void attention_forward(const AttentionFwdParams& params, const Threads& threads) {
  check(params);
  const auto [kernel, plan] = choose_kernel(kForward, params, [&](const auto& each) {
    return each.most_rows > 0 ? plan_decode(params, threads.num_threads) : plan_forward(params, threads.num_threads);
  });
  clear_uncovered(params);
  kernel.run(params, plan, threads);
  last_forward = kernel.name;
}

void attention_backward(const AttentionBwdParams& params, const Threads& threads) {
  check(params);
  const auto [kernel, plan] =
      choose_kernel(kBackward, params, [&](const auto&) { return plan_backward(params, threads.num_threads); });
  clear_uncovered(params, threads);
  kernel.run(params, plan, threads);
  last_backward = kernel.name;
}

std::vector<std::string> forward_kernels() { return names(kForward); }
std::vector<std::string> backward_kernels() { return names(kBackward); }

std::vector<std::string> why_not_forward(std::string_view kernel, const AttentionFwdParams& params) {
  return reasons_against(kForward, kernel, params);
}
std::vector<std::string> why_not_backward(std::string_view kernel, const AttentionBwdParams& params) {
  return reasons_against(kBackward, kernel, params);
}

std::string_view last_forward_kernel() { return last_forward; }
std::string_view last_backward_kernel() { return last_backward; }

}  // namespace xformers::cpu
