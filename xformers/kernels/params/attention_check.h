// What every device's entry points refuse before they look at memory: throws xformers::Error.
#pragma once

#include "xformers/kernels/params/attention.h"

namespace xformers {

void check(const AttentionFwdParams& params);
void check(const AttentionBwdParams& params);

}  // namespace xformers
