// Backward where a key may belong to several sequences, or lies in a page. Kernels write every gradient once, so each
// sequence gets a copy of its keys, packed one after the other, and the gradients of the copies are added up.
#pragma once

#include <c10/util/FunctionRef.h>

#include "xformers/ops/attention/attention_op.h"

namespace xformers::ops {

bool keys_may_be_shared(const AttentionArgs& args);

// `backward` is called on packed keys without pages. Gradients are added in a fixed order: same input, same bits.
// Tensors that are not on the CPU: waits for the lengths, which decide the size of the copy.
AttentionGradients backward_on_gathered_keys(
    const AttentionGradArgs& args, c10::function_ref<AttentionGradients(const AttentionGradArgs& gathered)> backward);

}  // namespace xformers::ops
