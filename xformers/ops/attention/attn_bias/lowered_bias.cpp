#include "xformers/ops/attention/attn_bias/lowered_bias.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>

#include "xformers/ops/attention/attn_bias/bias_error.h"

namespace xformers::ops {

MaskBand causal_window_band(int64_t window_size, bool bottom_right) {
  if (window_size <= 0) {
    bias_error("the window size is " + std::to_string(window_size), "1 or more", "1 sees the diagonal alone");
  }
  return {.window_left = window_size - 1, .window_right = 0, .bottom_right = bottom_right};
}

at::Tensor materialize_band(int64_t seqlen_q, int64_t seqlen_k, const MaskBand& band, at::ScalarType dtype,
                            at::Device device) {
  const auto index = at::dtype(at::kLong).device(device);
  const at::Tensor diagonal =
      at::arange(seqlen_q, index).unsqueeze(1) + (band.bottom_right ? seqlen_k - seqlen_q : int64_t{0});
  const at::Tensor key = at::arange(seqlen_k, index).unsqueeze(0);
  at::Tensor hidden = at::zeros({seqlen_q, seqlen_k}, index.dtype(at::kBool));
  const int64_t all = seqlen_q + seqlen_k;  // no window is wider, and no sum overflows
  if (band.window_left >= 0) hidden.logical_or_(key < diagonal - std::min(band.window_left, all));
  if (band.window_right >= 0) hidden.logical_or_(key > diagonal + std::min(band.window_right, all));
  return at::zeros({seqlen_q, seqlen_k}, index.dtype(dtype))
      .masked_fill_(hidden, -std::numeric_limits<double>::infinity());
}

}  // namespace xformers::ops
