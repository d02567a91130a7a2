// The ways of computing one row: this library, PyTorch's SDPA in its best forms, the plain formula.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "benchmarks/attention/rows.h"
#include "benchmarks/common/alternate.h"

namespace xformers::bench {

enum class Role { kOurs, kRival, kOther, kRoof };

struct AttentionSide {
  Role role;  // a rival computes the same result; "other" is shown and not counted; a roof is what the machine can do
  Side side;
};

inline constexpr const char* kOurs = "ours";
inline constexpr const char* kDenseSide = "dense";  // ours without its block mask
inline constexpr const char* kGemm = "gemm";
inline constexpr const char* kRead = "read";
inline constexpr const char* kCopy = "copy";

// With inputs of the same values, each in the layout that the side prefers.
std::vector<AttentionSide> attention_sides(const Row& row, bool quick);

double gemm_flops();  // of one call of the roof "gemm"

// Bytes of peak resident memory beyond inputs and outputs, of this library or of SDPA, for a dense row.
double extra_memory(const Row& row, bool ours);

}  // namespace xformers::bench
