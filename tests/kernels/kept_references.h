// What the reference says of an attention problem, computed once: many tests hold every kernel against the same one.
#pragma once

#include "tests/reference/attention.h"

namespace xformers::testing {

struct References {
  reference::AttentionResult exact, plain, roundings;
};

// The three of tests/reference/attention.h. They are kept while the same test runs, so that the next of its parameters,
// another kernel, finds them; a problem is the same only if each of its bits is. Valid until the next call.
const References& references(const reference::AttentionProblem& problem, DType dtype);

}  // namespace xformers::testing
