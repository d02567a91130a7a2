// Parameters that no kernel should see are refused before any memory is touched.
#pragma once

#include "xformers/kernels/params/attention.h"

namespace xformers::cpu {

// Throw xformers::Error.
void check(const AttentionFwdParams& params);
void check(const AttentionBwdParams& params);

}  // namespace xformers::cpu
