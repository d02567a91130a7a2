// Why an operator does not take a call. The same answer chooses the operator, writes the error and filters tests.
#pragma once

#include <string>
#include <vector>

#include "xformers/kernels/base/check.h"
#include "xformers/ops/attention/contracts/request.h"

namespace xformers::ops {

using Reasons = std::vector<std::string>;

// All of them; empty: the operator takes it.
Reasons not_supported_reasons(const Contract& contract, const AttentionRequest& request);

// Those that follow from sizes alone. head_dim_v: of the value.
Reasons shape_not_supported_reasons(const Contract& contract, int64_t seqlen_q, int64_t seqlen_k, int64_t head_dim,
                                    int64_t head_dim_v);

// "<name> is <got>, expected <expected>", and how to fix it where that is no matter of the inputs.
inline void add_reason(Reasons& reasons, std::string_view name, std::string_view got, std::string_view expected,
                       std::string_view fix = "") {
  reasons.push_back(to_text({.where = "", .name = name, .got = got, .expected = expected, .fix = fix}));
}

// Parts of the former. add_operator_reasons: the checks that a row of the table cannot say.
void add_operator_shape_reasons(Reasons& reasons, const Contract& contract, int64_t head_dim);
void add_operator_reasons(Reasons& reasons, const Contract& contract, const AttentionRequest& request);

// Kernels read whole vectors: neither the last size of x nor its stride before the last may break a multiple of
// `alignment` elements, and the elements of the last dimension have to be neighbours.
void check_lastdim_alignment_stride1(Reasons& reasons, const char* name, const at::Tensor& x, int64_t alignment);

// "supported here" of a device type: there are kernels for it in this build.
bool has_attention_kernels(at::DeviceType device);

}  // namespace xformers::ops
