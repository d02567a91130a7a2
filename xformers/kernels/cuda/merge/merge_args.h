// What the merge kernels get.
#pragma once

#include <cuda_runtime_api.h>

#include "xformers/kernels/base/divide.h"
#include "xformers/kernels/params/merge.h"

namespace xformers::cuda {

// As many as fit into 4 KiB of kernel arguments, twice (parts and their gradients).
inline constexpr int kPartsInArguments = 22;

struct PartList {
  MergePart at[kPartsInArguments];
};

struct RowDivisors {
  Divisor<uint32_t> queries, groups, heads;  // of a shape
};

struct MergeArgs {
  MergeShape shape;
  RowDivisors by;
  HeadsTensor out, lse;              // backward: dout, dlse
  const MergePart* parts = nullptr;  // [num_parts] in device memory; null: few_parts
  const MergePart* grads = nullptr;  // likewise; backward only
  PartList few_parts, few_grads;
  int log_lanes = 5;          // 2^log_lanes threads share a row
  bool aligned = false;       // all rows in units of 16 bytes of the parts
  bool same_strides = false;  // few parts, whose strides are those of the first; so those of their gradients
};
static_assert(sizeof(MergeArgs) <= 4096);

void launch_merge_forward(const MergeArgs& args, cudaStream_t stream);
void launch_merge_backward(const MergeArgs& args, cudaStream_t stream);

}  // namespace xformers::cuda
