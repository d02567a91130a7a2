#include "xformers/ops/attention/attn_bias/whole_matrix.h"

#include "xformers/ops/attention/attn_bias/bias_error.h"

namespace xformers::ops {
LowerTriangularMaskWithTensorBias::LowerTriangularMaskWithTensorBias(at::Tensor tensor) : bias(std::move(tensor)) {
  if (!bias.defined()) bias_error("the tensor to add is undefined", "scores", "use LowerTriangularMask");
}

LowerTriangularMaskWithTensorBias LowerTriangularMaskWithTensorBias::to(at::Device device) const {
  return LowerTriangularMaskWithTensorBias(bias.to(device));
}

at::Tensor LowerTriangularMaskWithTensorBias::materialize(at::IntArrayRef sizes, at::ScalarType dtype,
                                                          at::Device device) const {
  return ops::materialize(lower(*this), sizes, dtype, device);
}

LowerTriangularMaskWithTensorBias LowerTriangularMask::add_bias(const at::Tensor& bias) const {
  return LowerTriangularMaskWithTensorBias(bias);
}

LowerTriangularFromBottomRightLocalAttentionMask::LowerTriangularFromBottomRightLocalAttentionMask(int64_t window)
    : window_size(window) {
  band();  // refuses a window that sees nothing
}

LowerTriangularFromBottomRightLocalAttentionMask LowerTriangularFromBottomRightMask::make_local_attention(
    int64_t window_size) const {
  return LowerTriangularFromBottomRightLocalAttentionMask(window_size);
}

LocalAttentionFromBottomRightMask::LocalAttentionFromBottomRightMask(int64_t left, int64_t right)
    : window_left(left), window_right(right) {
  check_windows(left, right);
}

LoweredBias lower(const at::Tensor& bias) { return {.name = bias.defined() ? "Tensor" : "None", .scores = bias}; }

LoweredBias lower(const LowerTriangularMaskWithTensorBias& bias) {
  LoweredBias lowered{.name = "LowerTriangularMaskWithTensorBias", .scores = bias.bias};
  return lowered.with(kCausalBand);
}

}  // namespace xformers::ops
