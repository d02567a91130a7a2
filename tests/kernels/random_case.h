// Random small attention cases, the same for the same seed.
#pragma once

#include <cstdint>

#include "tests/cases/attention.h"

namespace xformers::testing {

AttentionCase random_case(uint64_t seed);

}  // namespace xformers::testing
