// The forms in which an LSE is handed to users: upstream's operators pad and batch it differently.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

namespace xformers::ops {

// For packed sequences (their query lengths given): T queries in n sequences, the longest of m.
//   "packed"  [1, (groups,) heads, T], as attention_forward returns it
//   "padded"  [n, (groups,) heads, m], filled with +inf
//   "cutlass" [n, (groups,) heads, m rounded up to 32], filled with +inf
// Else all are [batch, (groups,) heads, seqlen_q], the last with seqlen_q rounded up to 32.
at::Tensor lse_to_format(const at::Tensor& lse, c10::string_view format, at::IntArrayRef seqlens_q = {},
                         std::optional<at::ScalarType> dtype = std::nullopt);

// Any of them -> what attention_backward takes for this query, in its dtype. A last dimension may be longer than
// needed.
at::Tensor lse_from_format(const at::Tensor& lse, const at::Tensor& query, at::IntArrayRef seqlens_q = {},
                           c10::string_view bias_type = "None");

// "packed", "padded" (also for "cutlass"), or "any" where these are the same: one sequence, or none packed.
std::string lse_format(const at::Tensor& lse, const at::Tensor& query, at::IntArrayRef seqlens_q = {},
                       c10::string_view bias_type = "None");

// Between the packed and the padded form by the sequences' offsets, which may be on a device: nothing waits for them.
// cu_seqlens_q: int [n + 1]. pad_lse: [1, ..., T] -> [n, ..., width], filled with +inf. unpad_lse: the inverse.
at::Tensor pad_lse(const at::Tensor& lse, const at::Tensor& cu_seqlens_q, const c10::SymInt& width);
at::Tensor unpad_lse(const at::Tensor& lse, const at::Tensor& cu_seqlens_q, const c10::SymInt& total);

}  // namespace xformers::ops
