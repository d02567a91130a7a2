#include "xformers/kernels/cpu/attention/attention_cpu.h"

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "xformers/kernels/base/error.h"
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
  bool only_when_asked;  // by XFORMERS_KERNEL or XFORMERS_CPU_ISA
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
const std::vector<Kernel<ForwardFn>>& forward_list() {
  static const std::vector<Kernel<ForwardFn>> list = {
      {"decode_amx", Isa::kAmx, kBf16, 16, false, XFORMERS_ISA_FN(amx, decode)},
      {"decode_avx512", Isa::kAvx512, kAllDTypes, 8, false, XFORMERS_ISA_FN(avx512, decode)},
      {"fwd_amx", Isa::kAmx, kAmxDTypes, 0, false, XFORMERS_ISA_FN(amx, forward)},
      {"fwd_avx512_fp16", Isa::kAvx512Fp16, kFp16, 0, false, XFORMERS_ISA_FN(avx512_fp16, forward)},
      {"fwd_avx512_bf16", Isa::kAvx512Bf16, kBf16, 0, slow_bf16_dot(), XFORMERS_ISA_FN(avx512_bf16, forward)},
      {"fwd_avx512", Isa::kAvx512, kAllDTypes, 0, false, XFORMERS_ISA_FN(avx512, forward)},
      {"decode_avx2", Isa::kAvx2, kAllDTypes, 8, false, XFORMERS_ISA_FN(avx2, decode)},
      {"fwd_avx2", Isa::kAvx2, kAllDTypes, 0, false, XFORMERS_ISA_FN(avx2, forward)},
      {"decode_portable", Isa::kPortable, kAllDTypes, 8, false, XFORMERS_ISA_FN(portable, decode)},
      {"fwd_portable", Isa::kPortable, kAllDTypes, 0, false, XFORMERS_ISA_FN(portable, forward)},
  };
  return list;
}

const std::vector<Kernel<BackwardFn>>& backward_list() {
  static const std::vector<Kernel<BackwardFn>> list = {
      {"bwd_amx", Isa::kAmx, kAmxDTypes, 0, false, XFORMERS_ISA_FN(amx, backward)},
      {"bwd_avx512_fp16", Isa::kAvx512Fp16, kFp16, 0, false, XFORMERS_ISA_FN(avx512_fp16, backward)},
      {"bwd_avx512_bf16", Isa::kAvx512Bf16, kBf16, 0, slow_bf16_dot(), XFORMERS_ISA_FN(avx512_bf16, backward)},
      {"bwd_avx512", Isa::kAvx512, kAllDTypes, 0, false, XFORMERS_ISA_FN(avx512, backward)},
      {"bwd_avx2", Isa::kAvx2, kAllDTypes, 0, false, XFORMERS_ISA_FN(avx2, backward)},
      {"bwd_portable", Isa::kPortable, kAllDTypes, 0, false, XFORMERS_ISA_FN(portable, backward)},
  };
  return list;
}

thread_local std::string_view last_forward, last_backward;

// An environment variable, or nothing where it is unset or empty.
std::string_view setting(const char* name) {
  const char* value = std::getenv(name);
  return value ? std::string_view(value) : std::string_view();
}

template <class Fn>
void add_machine_reasons(const Kernel<Fn>& kernel, DType dtype, std::vector<std::string>& reasons) {
  if (!kernel.run)
    reasons.push_back(std::string("XFORMERS_CPU_ISAS left ") + name_of(kernel.isa) + " out of this build");
  if (!has_isa(kernel.isa)) reasons.push_back(std::string("this processor has no ") + name_of(kernel.isa));
  if (!(kernel.dtypes & bit(dtype))) reasons.push_back(std::string("dtype is ") + name_of(dtype));
}

std::vector<std::string> why_not(const Kernel<ForwardFn>& kernel, const AttentionFwdParams& params) {
  std::vector<std::string> reasons;
  add_machine_reasons(kernel, params.shape.dtype, reasons);
  if (kernel.most_rows == 0) return reasons;
  if (const int64_t rows = rows_per_key(params); rows > kernel.most_rows) {
    reasons.push_back(std::to_string(rows) + " rows (queries x heads of a group) share their keys, expected at most " +
                      std::to_string(kernel.most_rows));
  }
  if (params.dropout.p > 0) reasons.push_back("dropout");
  return reasons;
}

std::vector<std::string> why_not(const Kernel<BackwardFn>& kernel, const AttentionBwdParams& params) {
  std::vector<std::string> reasons;
  add_machine_reasons(kernel, params.shape.dtype, reasons);
  return reasons;
}

// The environment's objections: XFORMERS_KERNEL names one kernel, of either direction ("fwd_amx" leaves backward free).
template <class Fn>
void add_environment_reasons(const Kernel<Fn>& kernel, const std::vector<Kernel<Fn>>& list, std::optional<Isa> isa,
                             std::vector<std::string>& reasons) {
  const std::string_view wanted = setting("XFORMERS_KERNEL");
  const bool in_list = std::any_of(list.begin(), list.end(), [&](const auto& each) { return wanted == each.name; });
  if (in_list) {
    if (wanted != kernel.name) reasons.push_back("XFORMERS_KERNEL asks for " + std::string(wanted));
    return;
  }
  if (isa && *isa < kernel.isa)
    reasons.push_back(std::string("XFORMERS_CPU_ISA asks for ") + name_of(*isa) + " or less");
  if (kernel.only_when_asked && isa != kernel.isa) reasons.push_back("slower than fp32 on this processor");
}

bool is_known(std::string_view kernel) {
  const auto named = [&](const auto& each) { return kernel == each.name; };
  return std::any_of(forward_list().begin(), forward_list().end(), named) ||
         std::any_of(backward_list().begin(), backward_list().end(), named);
}

template <class Fn, class Params>
const Kernel<Fn>& choose(const std::vector<Kernel<Fn>>& list, const Params& params) {
  const std::string_view wanted = setting("XFORMERS_KERNEL");
  const std::optional<Isa> isa = isa_limit("attention");
  std::string report;
  if (wanted.empty() || is_known(wanted)) {
    for (const Kernel<Fn>& kernel : list) {
      std::vector<std::string> reasons = why_not(kernel, params);
      add_environment_reasons(kernel, list, isa, reasons);
      if (reasons.empty()) return kernel;
      report += std::string("\n  ") + kernel.name + ":";
      for (size_t i = 0; i < reasons.size(); ++i) report += (i ? "; " : " ") + reasons[i];
    }
  } else {
    for (const Kernel<Fn>& kernel : list) report += std::string("\n  ") + kernel.name;
  }
  throw Error("attention: no CPU kernel takes this call" +
              (wanted.empty() ? "" : " with XFORMERS_KERNEL=" + std::string(wanted)) +
              ".  Fix: unset XFORMERS_KERNEL and XFORMERS_CPU_ISA, or name one that fits." + report);
}

template <class Fn>
std::vector<std::string> names(const std::vector<Kernel<Fn>>& list) {
  std::vector<std::string> result;
  for (const Kernel<Fn>& kernel : list) result.push_back(kernel.name);
  return result;
}

template <class Fn, class Params>
std::vector<std::string> reasons_of(const std::vector<Kernel<Fn>>& list, std::string_view name, const Params& params) {
  for (const Kernel<Fn>& kernel : list) {
    if (name == kernel.name) return why_not(kernel, params);
  }
  return {"no kernel of this name"};
}

}  // namespace

void attention_forward(const AttentionFwdParams& params, const Threads& threads) {
  check(params);
  const Kernel<ForwardFn>& kernel = choose(forward_list(), params);
  clear_uncovered(params);
  kernel.run(
      params,
      kernel.most_rows > 0 ? plan_decode(params, threads.num_threads) : plan_forward(params, threads.num_threads),
      threads);
  last_forward = kernel.name;
}

void attention_backward(const AttentionBwdParams& params, const Threads& threads) {
  check(params);
  const Kernel<BackwardFn>& kernel = choose(backward_list(), params);
  clear_uncovered(params, threads);
  kernel.run(params, plan_backward(params, threads.num_threads), threads);
  last_backward = kernel.name;
}

std::vector<std::string> forward_kernels() { return names(forward_list()); }
std::vector<std::string> backward_kernels() { return names(backward_list()); }

std::vector<std::string> why_not_forward(std::string_view kernel, const AttentionFwdParams& params) {
  return reasons_of(forward_list(), kernel, params);
}
std::vector<std::string> why_not_backward(std::string_view kernel, const AttentionBwdParams& params) {
  return reasons_of(backward_list(), kernel, params);
}

std::string_view last_forward_kernel() { return last_forward; }
std::string_view last_backward_kernel() { return last_backward; }

}  // namespace xformers::cpu
