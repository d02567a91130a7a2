// The bias classes by name, and what operators ask about them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string_view>

namespace xformers::ops {

enum class BiasKind : int {
  kNone,
  kTensor,
  kLowerTriangularMask,
  kLowerTriangularMaskWithTensorBias,
  kLowerTriangularFromBottomRightMask,
  kLowerTriangularFromBottomRightLocalAttentionMask,
  kLocalAttentionFromBottomRightMask,
  kBlockDiagonalMask,
  kBlockDiagonalCausalMask,
  kBlockDiagonalCausalFromBottomRightMask,
  kBlockDiagonalCausalLocalAttentionMask,
  kBlockDiagonalCausalLocalAttentionFromBottomRightMask,
  kBlockDiagonalPaddedKeysMask,
  kBlockDiagonalCausalWithOffsetPaddedKeysMask,
  kBlockDiagonalCausalLocalAttentionPaddedKeysMask,
  kBlockDiagonalGappyKeysMask,
  kBlockDiagonalCausalWithOffsetGappyKeysMask,
  kPagedBlockDiagonalPaddedKeysMask,
  kPagedBlockDiagonalCausalWithOffsetPaddedKeysMask,
  kPagedBlockDiagonalGappyKeysMask,
  kCount,
};

// A set of kinds, one bit each.
class BiasSet {
 public:
  constexpr BiasSet() = default;
  constexpr BiasSet(std::initializer_list<BiasKind> kinds) {
    for (const BiasKind kind : kinds) bits_ |= bit(kind);
  }
  static constexpr BiasSet all() {
    BiasSet set;
    set.bits_ = bit(BiasKind::kCount) - 1;
    return set;
  }
  constexpr bool has(BiasKind kind) const { return (bits_ & bit(kind)) != 0; }
  constexpr BiasSet operator|(BiasSet other) const {
    other.bits_ |= bits_;
    return other;
  }

 private:
  static constexpr uint32_t bit(BiasKind kind) { return uint32_t{1} << static_cast<int>(kind); }
  uint32_t bits_ = 0;
};

const char* bias_name(BiasKind kind);
// Exactly these classes: a class that a user derived has a name of its own, and no kind.
std::optional<BiasKind> find_bias_kind(std::string_view name);

inline constexpr BiasSet kTopLeftCausalBiases{BiasKind::kLowerTriangularMask, BiasKind::kBlockDiagonalCausalMask,
                                              BiasKind::kBlockDiagonalCausalLocalAttentionMask};
inline constexpr BiasSet kPackedKeysBiases{
    BiasKind::kBlockDiagonalMask, BiasKind::kBlockDiagonalCausalMask, BiasKind::kBlockDiagonalCausalFromBottomRightMask,
    BiasKind::kBlockDiagonalCausalLocalAttentionMask, BiasKind::kBlockDiagonalCausalLocalAttentionFromBottomRightMask};
inline constexpr BiasSet kPagedBiases{BiasKind::kPagedBlockDiagonalPaddedKeysMask,
                                      BiasKind::kPagedBlockDiagonalCausalWithOffsetPaddedKeysMask,
                                      BiasKind::kPagedBlockDiagonalGappyKeysMask};

}  // namespace xformers::ops
