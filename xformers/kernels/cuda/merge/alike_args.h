// Merging parts that lie alike, as those of one computation do: all outs have one set of strides, all lses another,
// rows begin at multiples of 16 bytes, and places are counted in 32 bits. Computed in fp32.
#pragma once

#include "xformers/kernels/cuda/merge/merge_args.h"

namespace xformers::cuda {

inline constexpr int64_t kLeastVectors = 4;  // of 16 bytes per row of a part

struct AlikeStrides {  // outs: in units of 16 bytes of the parts' elements; lses: in elements
  uint32_t batch = 0, query = 0, group = 0, head = 0;
};

struct AlikePart {
  void *out = nullptr, *lse = nullptr;
};

struct AlikeArgs {
  DType dtype = DType::kFloat32, out_dtype = DType::kFloat32;
  uint32_t rows = 0, vectors = 0;
  uint32_t num_parts = 0;
  int log_lanes = 5;  // 2^log_lanes threads share a row: one per vector, 32 at most
  RowDivisors by;
  AlikeStrides part_out, part_lse, out, lse, grad_out, grad_lse;  // out, lse; backward: dout, dlse
  void *out_data = nullptr, *lse_data = nullptr;                  // lse null: not wanted; dlse null: none
  AlikePart parts[kPartsInArguments], grads[kPartsInArguments];   // grads: backward only
};

// Whether these may be merged this way, and then how.
bool lie_alike(const MergeArgs& args, AlikeArgs& alike);

void launch_alike_forward(const AlikeArgs& args, cudaStream_t stream);
void launch_alike_backward(const AlikeArgs& args, cudaStream_t stream);

}  // namespace xformers::cuda
