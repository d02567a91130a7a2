// What every device's entry points refuse before they look at memory: throws xformers::Error.
#pragma once

#include "xformers/kernels/params/attention.h"

namespace xformers {

// Which score modifiers a device's kernels know: all, or a bias of the dense layout alone.
enum class KnownModifiers { kDenseBias, kAll };

void check(const AttentionFwdParams& params, KnownModifiers known = KnownModifiers::kDenseBias);
void check(const AttentionBwdParams& params, KnownModifiers known = KnownModifiers::kDenseBias);

}  // namespace xformers
