// What the merge kernels get.
#pragma once

#include <cuda_runtime_api.h>

#include <bit>

#include "xformers/kernels/params/merge.h"

namespace xformers::cuda {

// As many as fit into 4 KiB of kernel arguments, twice (parts and their gradients).
inline constexpr int kPartsInArguments = 22;

struct PartList {
  MergePart at[kPartsInArguments];
};

// Quotients of numbers below 2^31 by a product: with s = ceil(log2(divisor)), n * ceil(2^(31 + s) / divisor) exceeds
// n / divisor * 2^(31 + s) by less than 2^(31 + s) / divisor.
struct SmallDivisor {
  uint32_t divisor = 1, factor = 1u << 31;
  int shift = 31;

  SmallDivisor() = default;
  explicit SmallDivisor(int64_t by) : divisor(static_cast<uint32_t>(by)) {
    shift = 31 + std::bit_width(divisor - 1);
    factor = static_cast<uint32_t>(((uint64_t{1} << shift) + divisor - 1) / divisor);
  }
#if defined(__CUDACC__)
  // n becomes n / divisor; returns the remainder.
  __device__ __forceinline__ uint32_t divide(uint32_t& n) const {
    const uint32_t before = n;
    n = static_cast<uint32_t>(uint64_t{n} * factor >> shift);
    return before - n * divisor;
  }
#endif
};

struct MergeArgs {
  MergeShape shape;
  SmallDivisor queries, groups, heads;  // of the shape
  HeadsTensor out, lse;                 // backward: dout, dlse
  const MergePart* parts = nullptr;     // [num_parts] in device memory; null: few_parts
  const MergePart* grads = nullptr;     // likewise; backward only
  PartList few_parts, few_grads;
  int log_lanes = 5;          // 2^log_lanes threads share a row
  bool aligned = false;       // all rows in units of 16 bytes of the parts
  bool same_strides = false;  // few parts, whose strides are those of the first; so those of their gradients
};
static_assert(sizeof(MergeArgs) <= 4096);

void launch_merge_forward(const MergeArgs& args, cudaStream_t stream);
void launch_merge_backward(const MergeArgs& args, cudaStream_t stream);

}  // namespace xformers::cuda
