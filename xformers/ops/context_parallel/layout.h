// Who owns which tokens.
#pragma once

#include <vector>

#include "xformers/ops/context_parallel/plan.h"

namespace xformers::parallel {

Visibility visibility_of(const ContextProblem& problem);

// The tokens of each team, in the order of its rows.
std::vector<std::vector<Run>> owners(const ContextProblem& problem);

}  // namespace xformers::parallel
