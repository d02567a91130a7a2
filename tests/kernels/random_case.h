// Random small attention cases, the same for the same seed.
#pragma once

#include <cstdint>

#include "tests/cases/attention.h"

namespace xformers::testing {

AttentionCase random_case(uint64_t seed);
AttentionCase random_modified_case(uint64_t seed);  // with softcap, ALiBi, sinks, and a bias where sequences are packed

}  // namespace xformers::testing
