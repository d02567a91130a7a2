// One call of attention, as far as contracts look at it: tensors by shape, strides, dtype and device, and the few
// integers of a bias. No element is read, so nothing waits for a device.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "xformers/ops/attention/contracts/contract.h"

namespace xformers::ops {

struct AttentionRequest {
  const at::Tensor &query, &key, &value;
  std::string bias = "None";               // name of its class
  std::optional<at::Tensor> dense_bias{};  // of a bias that holds one
  bool bias_requires_grad = false;
  double softcap = 0;
  bool alibi_slopes = false, slopes_require_grad = false, sinks = false;
  std::vector<int64_t> seqlens_q{}, seqlens_k{};  // of biases that pack sequences of different lengths
  int64_t page_size = 0;                          // of paged keys
  double p = 0;
  std::optional<at::ScalarType> output_dtype{};
  bool partial = false;
  // Settings of the split-K class. num_groups: int4 groups per row, nullopt: whatever the rows hold.
  std::optional<int64_t> num_groups = 1;
  int64_t split_k = 0;
  bool fp8 = false;  // int32 keys are rows of e4m3 numbers
  // Of the query's CUDA device. Unknown, or another device: what depends on it is not checked.
  std::optional<CudaCapability> capability{};

  // A fact of its row; false of a class that users define.
  bool bias_is(BiasFacts fact) const {
    const BiasRow* row = find_bias(bias);
    return row && (row->facts & fact) != 0;
  }
  bool packed() const { return !seqlens_q.empty(); }
  bool quantized() const { return key.scalar_type() == at::kInt; }
  int64_t head_dim_v() const { return quantized() ? query.size(-1) : value.size(-1); }
};

}  // namespace xformers::ops
