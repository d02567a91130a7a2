// Merging attention over disjoint sets of keys into attention over their union (kernels/params/merge.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace xformers::ops {

// attn: one [batch, seqlen, (groups,) heads, head_dim] per set of keys; lse: one [batch, (groups,) heads, seqlen] each,
// fp32 or fp64. Returns (out, lse), out in out_dtype or that of attn; lse has shape [0] unless write_lse.
// Differentiable in everything; a part whose lse is -inf counts for nothing, whatever its out holds.
std::tuple<at::Tensor, at::Tensor> merge_attentions(at::TensorList attn, at::TensorList lse, bool write_lse = true,
                                                    std::optional<at::ScalarType> out_dtype = std::nullopt);

}  // namespace xformers::ops
