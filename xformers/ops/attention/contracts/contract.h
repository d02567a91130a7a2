// The operators that users select by name ("cutlass", "flash", "flash3", "triton_splitk", ...) are contracts: which
// inputs they take and in which form they return the log-sum-exp. All of them are served by the same kernels.
//
// To change or add one, or a bias: its row in contract_table.cpp; a check that the row cannot say:
// operator_reasons.cpp.
#pragma once

#include <c10/core/ScalarType.h>

#include <array>
#include <compare>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "xformers/ops/attention/contracts/bias_row.h"

namespace xformers::ops {

// The version of FlashAttention that the flash operators follow; a part of their names.
inline constexpr const char* kFlashVersion = "2.6.3";

struct CudaCapability {
  int64_t major = 0, minor = 0;
  auto operator<=>(const CudaCapability&) const = default;
};

// Tolerances against attention in fp32 for fp32, fp16, bf16 operands.
using Tolerances = std::array<double, 3>;

enum class Backend { kCutlass, kFlash, kFlash3, kSplitK, kCk, kCkDecoder, kCkSplitK, kGeneric };

struct Contract {
  const char* key;     // "fa2F"
  const char* module;  // Python module of the class
  Backend backend;
  bool backward = false;
  const char* version = "";         // follows the name: "fa2F@2.6.3"
  const char* not_built = nullptr;  // why it is not part of this library
  bool runs_on_cpu = true;          // besides CUDA
  CudaCapability min_capability{5, 0};
  bool takes_fp32 = true, takes_fp64 = false;  // fp16 and bf16 are taken by all
  int64_t max_head_dim = 65536;
  Takers biases_of = kEvery;  // which biases it takes: those whose row names it
  bool dropout = true;
  bool different_value_head_dim = true;
  bool output_dtype = false;
  bool partial = true;
  bool groups = false;  // 5-D inputs
  bool bias_gradient = false;
  bool softcap_and_alibi = false;  // scores may be capped and tilted
  bool all_modifiers = false;      // and have sinks, biases of packed sequences and gradients of all of these
  bool quantized_keys = false;
  bool derived_biases = false;  // classes that users derive from ours
  bool deterministic = true;
  bool packed_lse = true;  // of sequences of different lengths: [1, heads, total], else [sequences, heads, longest]
  int64_t lse_pad_to = 1;
  bool fp64_lse = false;  // where the output is fp32 or fp64
  Tolerances atol{3e-4, 4e-3, 2e-2}, rtol{2e-5, 4e-4, 5e-3};

  std::string name() const { return *version ? std::string(key) + "@" + version : key; }
  bool takes(at::ScalarType dtype) const;
  bool takes(const BiasRow& bias) const { return (bias.taken_by & biases_of) != 0; }
};

std::span<const Contract> contracts();
const Contract& find_contract(std::string_view key);  // xformers::Error if there is none
std::string contract_json(const Contract& contract);  // the attributes of the Python class

}  // namespace xformers::ops
