// What the tests of bias types share: masks written by rule, and attention through a bias against attention with the
// mask it stands for.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <string>

#include "xformers/ops/attention/attn_bias.h"

namespace xformers::ops {

// visible(query, key), both counted from the start of the tensors
using Visible = std::function<bool(int64_t, int64_t)>;

// fp32 [seqlen_q, seqlen_k]: 0 where visible, -inf elsewhere
at::Tensor mask_by_rule(int64_t seqlen_q, int64_t seqlen_k, const Visible& visible);

// Intervals of a packed dimension: the sequence that position `i` belongs to, or -1.
int64_t sequence_of(const Intervals& intervals, int64_t i);

// Output, log-sum-exp and all gradients of attention with the bias are those of dense fp64 attention with the mask,
// [seqlen_q, seqlen_k]; rows that see no key are 0. `scores` is added beside the mask.
void expect_attention_follows(const AttentionBias& bias, const at::Tensor& mask, const at::Tensor& scores = {});

// The message of the xformers::Error that fn throws; another text if it throws none.
std::string error_of(const std::function<void()>& fn);

}  // namespace xformers::ops
