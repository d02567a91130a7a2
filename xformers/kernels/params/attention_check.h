// What every device's entry points refuse before they look at memory: throws xformers::Error.
#pragma once

#include "xformers/kernels/params/attention.h"

namespace xformers {

// Which masks a device's kernels know: bands alone, or lists of visible blocks, too.
enum class KnownMasks { kBands, kBlocks };

void check(const AttentionFwdParams& params, KnownMasks known = KnownMasks::kBands);
void check(const AttentionBwdParams& params, KnownMasks known = KnownMasks::kBands);

}  // namespace xformers
