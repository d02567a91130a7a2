// The second half of sums over rows: kernels leave one row of partial sums per chunk of rows.
#pragma once

#include <cstdint>

#include "xformers/kernels/base/dtype.h"
#include "xformers/kernels/cuda/base/stream.h"

namespace xformers::cuda {

// out[column] = sum of partials[chunk][column], in a fixed order. partials [chunks, width] are fp32 (fp64 for
// `partial_dtype` fp64), out is of `out_dtype`. No chunks: zeros.
void column_sums(const void* partials, DType partial_dtype, int64_t chunks, int64_t width, void* out, DType out_dtype,
                 const Stream& stream);

// Two kinds of sums at once: partials [chunks, 2, width], and a result for each; nullptr: not wanted.
void column_sums(const void* partials, DType partial_dtype, int64_t chunks, int64_t width, void* first, void* second,
                 DType out_dtype, const Stream& stream);

}  // namespace xformers::cuda
