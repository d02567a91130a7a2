#include "xformers/ops/attention/contracts/bias_kind.h"

#include <array>

namespace xformers::ops {
namespace {

constexpr int kNumKinds = static_cast<int>(BiasKind::kCount);
constexpr std::array<const char*, kNumKinds> kNames = {
    "None",
    "Tensor",
    "LowerTriangularMask",
    "LowerTriangularMaskWithTensorBias",
    "LowerTriangularFromBottomRightMask",
    "LowerTriangularFromBottomRightLocalAttentionMask",
    "LocalAttentionFromBottomRightMask",
    "BlockDiagonalMask",
    "BlockDiagonalCausalMask",
    "BlockDiagonalCausalFromBottomRightMask",
    "BlockDiagonalCausalLocalAttentionMask",
    "BlockDiagonalCausalLocalAttentionFromBottomRightMask",
    "BlockDiagonalPaddedKeysMask",
    "BlockDiagonalCausalWithOffsetPaddedKeysMask",
    "BlockDiagonalCausalLocalAttentionPaddedKeysMask",
    "BlockDiagonalGappyKeysMask",
    "BlockDiagonalCausalWithOffsetGappyKeysMask",
    "PagedBlockDiagonalPaddedKeysMask",
    "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask",
    "PagedBlockDiagonalGappyKeysMask",
};
static_assert(kNames.back() != nullptr, "one name per kind");

}  // namespace

const char* bias_name(BiasKind kind) { return kNames[static_cast<int>(kind)]; }

std::optional<BiasKind> find_bias_kind(std::string_view name) {
  for (int i = 0; i < kNumKinds; ++i) {
    if (name == kNames[i]) return static_cast<BiasKind>(i);
  }
  return std::nullopt;
}

}  // namespace xformers::ops
