// What the choice of a kernel and its arguments depend on: how tensors lie in memory, which heads share keys. Plain
// C++.
#pragma once

#include <cuda_runtime_api.h>

#include "xformers/kernels/cuda/attention/bwd_args.h"
#include "xformers/kernels/cuda/attention/fwd_args.h"
#include "xformers/kernels/cuda/base/stream.h"

namespace xformers::cuda {

inline constexpr double kLog2eDouble = 1.4426950408889634074;

inline cudaStream_t to_stream(const Stream& stream) { return static_cast<cudaStream_t>(stream.stream); }

// Rows begin at multiples of `bytes`. Strides of dimensions with one entry don't matter.
bool is_aligned(const HeadsTensor& t, const AttentionShape& shape, int64_t seqlen, int64_t element_size, int64_t bytes);

// And are whole multiples of 16 bytes: of 16-bit elements, of fp32.
bool rows_of_16_bytes(const HeadsTensor& t, const AttentionShape& shape, int64_t seqlen, int64_t dim);
bool fp32_rows_of_16_bytes(const HeadsTensor& t, const AttentionShape& shape, int64_t seqlen, int64_t dim);

// Rows of a bias in units of `elements` 16-bit elements: 8 is what cp.async takes; the gradient is written in units
// of 2.
bool bias_aligned(const ScoreBias& bias, const AttentionShape& shape, int64_t elements);

bool q_aligned(const AttentionFwdParams& p);
bool kv_aligned(const AttentionFwdParams& p);

// Heads that share the rows of K and V go into one tile.
int packed_heads(const AttentionFwdParams& p);

// Tiles of block_m rows in all, at most.
int64_t row_tiles(const AttentionFwdParams& p, int block_m);

// batch * num_heads * seqlen_q
int64_t total_rows(const AttentionShape& shape);

// Partial results of `splits` parts of the keys: their bytes, and where `args` finds them.
size_t partial_bytes(const AttentionFwdParams& p, int64_t splits);
void set_partial_results(FwdArgs& args, int64_t splits, const Stream& stream);

// What every forward, and every forward on 16-bit tensor cores, gets.
FwdArgs forward_args(const AttentionFwdParams& p);
FwdArgs half_forward_args(const AttentionFwdParams& p);

}  // namespace xformers::cuda
