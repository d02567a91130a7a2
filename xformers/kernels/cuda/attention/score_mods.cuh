// What happens to a score between the product and the mask, in this order:
//
//   x = scale * (q . k)      in natural units
//   x = x + bias             a tensor of any strides
//
// A phase over fragments of [queries, keys]: rows and columns count as the caller says, and a row that has no bias, or
// is none, has none to give.
#pragma once

#include "xformers/kernels/cuda/attention/fragment.cuh"
#include "xformers/kernels/cuda/base/elements.cuh"

namespace xformers::cuda {

// x -> scale * x + bias, of keys [first_key, seqlen_k). bias_of(row): of the fragment's row and key 0, or null.
template <int kRowTiles, int kColumnTiles, class BiasOf>
__device__ __forceinline__ void scale_and_add(Fragment<kRowTiles, kColumnTiles>& x, float scale, int first_key,
                                              int seqlen_k, int64_t key_stride, const BiasOf& bias_of) {
  for_each_row<kRowTiles>([&](int r, int half) {
    const int first = first_key + lane_column(0);
    const auto* bias = bias_of(lane_row(r, half));
    const bool has_bias = bias != nullptr;
    if (has_bias) bias += first * key_stride;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& at = x[r][n][half * 2 + i];
        const bool adds = has_bias && first + n * 8 + i < seqlen_k;
        at = fmaf(at, scale, adds ? to_float(bias[i * key_stride]) : 0.0f);
      }
      bias += 8 * key_stride;
    }
  });
}

}  // namespace xformers::cuda
