// Backward where a key may belong to several sequences, or lies in a page. Kernels write every gradient once, so each
// sequence gets a copy of its keys, and the gradients of the copies are added up.
//
// On the CPU the offsets tell which ranges overlap and how long the copies are. On a GPU nothing waits for them: ranges
// given by starts and a total (sequences + 1 entries of cu_seqlens_k) are taken as disjoint, and starts alone (as many
// entries as sequences) as anything; copies are as long as a sequence could be, and made for a few sequences at a time.
#pragma once

#include <c10/util/FunctionRef.h>

#include "xformers/ops/attention/attention_op.h"

namespace xformers::ops {

bool keys_may_be_shared(const AttentionArgs& args);

// `backward` is called on keys without pages, in disjoint ranges. Gradients are added in a fixed order: same input,
// same bits.
AttentionGradients backward_on_gathered_keys(
    const AttentionGradArgs& args, c10::function_ref<AttentionGradients(const AttentionGradArgs& gathered)> backward);

}  // namespace xformers::ops
