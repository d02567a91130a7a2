// Floating-point operations of attention, for profilers.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace xformers::ops {

// Lengths of the keys of packed sequences: those used, else what lies between the offsets.
struct PackedLengths {
  const std::optional<at::Tensor>&cu_seqlens_q, &cu_seqlens_k, &seqused_k;
};

// Sizes in the layouts of the operators, or [batch, heads, seqlen, head_dim] if heads_first. Causal counts as aligned
// at the bottom-right corner. The formulas are those of attention_cost.h.
int64_t attention_flops(at::IntArrayRef query, at::IntArrayRef key, at::IntArrayRef value, bool causal, bool backward,
                        bool heads_first, const PackedLengths& lengths);

}  // namespace xformers::ops
