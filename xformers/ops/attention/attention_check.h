// What the attention operators refuse, for every device: shapes, dtypes, devices and ranges. Reads no element but the
// offsets of packed sequences, and those only on the CPU.
#pragma once

#include "xformers/ops/attention/attention_op.h"

namespace xformers::ops {

// The arguments that forward and backward share.
struct AttentionInputs {
  const at::Tensor &query, &key, &value;
  const OptionalTensor& attn_bias;
  const c10::SymInt &window_left, &window_right;
  const OptionalTensor &cu_seqlens_q, &cu_seqlens_k, &seqused_k;
  double p;
  const OptionalTensor& philox_state;
};

void check_same_device(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value);
void check_inputs(const AttentionInputs& in);
void check_gradient_inputs(const AttentionInputs& in, const at::Tensor& grad_out, const at::Tensor& out,
                           const at::Tensor& lse, const OptionalTensor& grad_lse);
void check_offsets_on_cpu(const AttentionInputs& in);  // offsets rise and stay inside the tensors

// Shapes of the results; sizes may be symbolic.
c10::SymDimVector out_sizes(const at::Tensor& query, const at::Tensor& value);
c10::SymDimVector lse_sizes(const at::Tensor& query);
inline at::ScalarType lse_dtype(const at::Tensor& query) {
  return query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace xformers::ops
