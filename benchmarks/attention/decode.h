// One query per sequence against a cache of keys: this library on the cache as it lies, padded or in pages, SDPA on
// each sequence alone or on a padded batch.
#pragma once

#include <vector>

#include "benchmarks/attention/sides.h"

namespace xformers::bench {

std::vector<AttentionSide> decode_sides(const Row& row);

}  // namespace xformers::bench
