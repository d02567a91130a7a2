// Time per training step and peak memory of the three attentions, each in processes of its own.
#pragma once

#include "examples/microgpt/options.h"

namespace microgpt {

int compare(const CompareOptions& options);  // prints a table; exit code
int measure(const CompareOptions& options);  // one process of it: prints JSON

}  // namespace microgpt
