// What the named operators take: a row per bias, and a row per operator.
#include <algorithm>
#include <sstream>

#include "xformers/kernels/base/error.h"
#include "xformers/ops/attention/contracts/contract.h"

namespace xformers::ops {
namespace {

// Who takes which bias. The generic operators take every one, also those that users define.
constexpr uint32_t kCutlassAndFlash = kCutlassF | kCutlassB | kFlashF | kFlashB | kCkF | kCkB;
constexpr uint32_t kDecoding = kFlashF | kFlash3F | kSplitKF;
constexpr BiasRow kBiases[] = {
    {"None", kEvery},
    {"Tensor", kCutlassF | kCutlassB | kSplitKF | kCkF | kCkB},
    {"LowerTriangularMask", kCutlassAndFlash | kFlash3F | kFlash3B, kTopLeft},
    {"LowerTriangularMaskWithTensorBias", kCutlassF | kCutlassB | kCkF | kCkB},
    {"LowerTriangularFromBottomRightMask", kCutlassAndFlash | kFlash3F | kFlash3B},
    {"LowerTriangularFromBottomRightLocalAttentionMask", kCutlassF | kFlashF | kFlashB | kCkF | kCkB},
    {"LocalAttentionFromBottomRightMask", kFlashF | kFlashB},
    {"BlockDiagonalMask", kCutlassAndFlash | kFlash3F | kFlash3B, kPackedKeys},
    {"BlockDiagonalCausalMask", kCutlassAndFlash | kFlash3F | kFlash3B, kTopLeft | kPackedKeys},
    {"BlockDiagonalCausalFromBottomRightMask", kCutlassAndFlash | kFlash3F | kFlash3B, kPackedKeys},
    {"BlockDiagonalCausalLocalAttentionMask", kCutlassAndFlash, kTopLeft | kPackedKeys},
    {"BlockDiagonalCausalLocalAttentionFromBottomRightMask", kCutlassF | kFlashF | kFlashB | kCkF, kPackedKeys},
    {"BlockDiagonalPaddedKeysMask", kDecoding},
    {"BlockDiagonalCausalWithOffsetPaddedKeysMask", kDecoding | kCutlassF | kCkF | kCkDecoderF},
    {"BlockDiagonalCausalLocalAttentionPaddedKeysMask", kFlashF},
    {"BlockDiagonalGappyKeysMask", kDecoding | kCkF},
    {"BlockDiagonalCausalWithOffsetGappyKeysMask", kDecoding | kCkF},
    {"PagedBlockDiagonalPaddedKeysMask", kFlashF | kSplitKF, kPaged},
    {"PagedBlockDiagonalCausalWithOffsetPaddedKeysMask", kFlashF | kSplitKF, kPaged},
    {"PagedBlockDiagonalGappyKeysMask", kSplitKF, kPaged},
    {"BlockSparseMask", kNoneOfThem},
};

constexpr const char* kNeedsRocm = "it exists for ROCm alone";

constexpr Tolerances kBackwardAtol{9e-4, 0.2, 0.9}, kBackwardRtol{1e-4, 2e-2, 0.1};

constexpr Contract kContracts[] = {
    {.key = "cutlassF",
     .module = "cutlass",
     .backend = Backend::kCutlass,
     .biases_of = kCutlassF,
     .groups = true,
     .packed_lse = false,
     .lse_pad_to = 32},
    {.key = "cutlassB",
     .module = "cutlass",
     .backend = Backend::kCutlass,
     .backward = true,
     .biases_of = kCutlassB,
     .bias_gradient = true,
     .packed_lse = false,
     .lse_pad_to = 32,
     .atol = kBackwardAtol,
     .rtol = kBackwardRtol},
    {.key = "fa2F",
     .module = "flash",
     .backend = Backend::kFlash,
     .version = kFlashVersion,
     .min_capability = {8, 0},
     .takes_fp32 = false,
     .max_head_dim = 256,
     .biases_of = kFlashF,
     .different_value_head_dim = false,
     .groups = true,
     .softcap_and_alibi = true},
    {.key = "fa2B",
     .module = "flash",
     .backend = Backend::kFlash,
     .backward = true,
     .version = kFlashVersion,
     .min_capability = {8, 0},
     .takes_fp32 = false,
     .max_head_dim = 256,
     .biases_of = kFlashB,
     .different_value_head_dim = false,
     .softcap_and_alibi = true,
     .deterministic = false,
     .atol = kBackwardAtol,
     .rtol = kBackwardRtol},
    {.key = "fa3F",
     .module = "flash3",
     .backend = Backend::kFlash3,
     .version = kFlashVersion,
     .min_capability = {9, 0},
     .takes_fp32 = false,
     .max_head_dim = 256,
     .biases_of = kFlash3F,
     .dropout = false,
     .different_value_head_dim = false,
     .groups = true,
     .softcap_and_alibi = true},
    {.key = "fa3B",
     .module = "flash3",
     .backend = Backend::kFlash3,
     .backward = true,
     .version = kFlashVersion,
     .min_capability = {9, 0},
     .takes_fp32 = false,
     .max_head_dim = 128,
     .biases_of = kFlash3B,
     .dropout = false,
     .different_value_head_dim = false,
     .softcap_and_alibi = true,
     .deterministic = false,
     .atol = kBackwardAtol,
     .rtol = kBackwardRtol},
    {.key = "triton_splitKF",
     .module = "triton_splitk",
     .backend = Backend::kSplitK,
     .min_capability = {8, 0},
     .takes_fp32 = false,
     .max_head_dim = 512,
     .biases_of = kSplitKF,
     .dropout = false,
     .different_value_head_dim = false,
     .output_dtype = true,
     .groups = true,
     .quantized_keys = true,
     .fp64_lse = true},
    {.key = "ckF",
     .module = "ck",
     .backend = Backend::kCk,
     .not_built = kNeedsRocm,
     .runs_on_cpu = false,
     .takes_fp32 = false,
     .max_head_dim = 256,
     .biases_of = kCkF,
     .partial = false,
     .groups = true,
     .atol = {3e-4, 6e-3, 2.8e-2},
     .rtol = {2e-5, 3e-3, 2e-2}},
    {.key = "ckB",
     .module = "ck",
     .backend = Backend::kCk,
     .backward = true,
     .not_built = kNeedsRocm,
     .runs_on_cpu = false,
     .takes_fp32 = false,
     .max_head_dim = 256,
     .biases_of = kCkB,
     .bias_gradient = true,
     .atol = kBackwardAtol,
     .rtol = kBackwardRtol},
    {.key = "ck_decoderF",
     .module = "ck_decoder",
     .backend = Backend::kCkDecoder,
     .not_built = kNeedsRocm,
     .runs_on_cpu = false,
     .max_head_dim = 256,
     .biases_of = kCkDecoderF,
     .dropout = false,
     .different_value_head_dim = false,
     .partial = false},
    {.key = "ck_splitKF",
     .module = "ck_splitk",
     .backend = Backend::kCkSplitK,
     .not_built = kNeedsRocm,
     .runs_on_cpu = false,
     .max_head_dim = 256,
     .biases_of = kCkDecoderF,
     .dropout = false,
     .different_value_head_dim = false,
     .partial = false},
    // Closes every list: whatever the kernels can do.
    {.key = "genericF",
     .module = "generic",
     .backend = Backend::kGeneric,
     .takes_fp64 = true,
     .biases_of = kEvery,
     .output_dtype = true,
     .groups = true,
     .softcap_and_alibi = true,
     .all_modifiers = true,
     .quantized_keys = true,
     .derived_biases = true},
    {.key = "genericB",
     .module = "generic",
     .backend = Backend::kGeneric,
     .backward = true,
     .takes_fp64 = true,
     .biases_of = kEvery,
     .output_dtype = true,
     .groups = true,
     .bias_gradient = true,
     .softcap_and_alibi = true,
     .all_modifiers = true,
     .derived_biases = true,
     .atol = kBackwardAtol,
     .rtol = kBackwardRtol},
};

}  // namespace

bool Contract::takes(at::ScalarType dtype) const {
  switch (dtype) {
    case at::kHalf:
    case at::kBFloat16: return true;
    case at::kFloat: return takes_fp32;
    case at::kDouble: return takes_fp64;
    default: return false;
  }
}

std::span<const BiasRow> bias_rows() { return kBiases; }

const BiasRow* find_bias(std::string_view name) {
  const BiasRow* row = std::find(std::begin(kBiases), std::end(kBiases), name);
  return row == std::end(kBiases) ? nullptr : row;
}

std::span<const Contract> contracts() { return kContracts; }

const Contract& find_contract(std::string_view key) {
  std::ostringstream known;
  for (const Contract& contract : kContracts) {
    if (key == contract.key) return contract;
    known << (&contract == kContracts ? "" : ", ") << contract.key;
  }
  throw Error("attention: the operator is " + std::string(key) + ", expected one of " + known.str() +
              ".  Fix: take a name from torch.ops.xformers.attention_contracts().");
}

}  // namespace xformers::ops
