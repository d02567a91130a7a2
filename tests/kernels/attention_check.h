// Holds what the kernels wrote against the reference.
//
// Budget for out, lse and each gradient: err(kernel) <= 2 * err(plain) + 2 ulp, where err is the largest distance to
// the exact answer over a few hundred neighbouring elements, `plain` is the same-dtype formula, and an ulp (two
// roundings) is that of the element or of the terms that it sums, whichever is larger: see roundings() in
// tests/reference/attention.h. Inf and NaN stand where they should, first.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/cases/attention.h"
#include "tests/kernels/attention_run.h"

namespace xformers::testing {

// Runs forward and backward and checks everything they wrote.
::testing::AssertionResult matches_reference(const AttentionCase& c);

// The same for a run that has been made, of forward alone where not `gradients`; `run` holds the outputs.
::testing::AssertionResult matches_reference(const AttentionRun& run, bool gradients = true);

// Prints the largest error / budget of each kernel and quantity, or adds lines "<kernel> <quantity> <ratio>" to the
// file that XFORMERS_TEST_RATIOS names.
void report_ratios();

// Parametrised tests over cases: one test, MatchesReference, in attention_check.cpp.
class AttentionCases : public ::testing::TestWithParam<AttentionCase> {};

// For INSTANTIATE_TEST_SUITE_P: cases by their text form, and test names made of it.
inline auto cases(const std::vector<std::string>& texts) { return ::testing::ValuesIn(parse_attention_cases(texts)); }
std::string test_name(const ::testing::TestParamInfo<AttentionCase>& info);

// How GoogleTest prints a case.
inline void PrintTo(const AttentionCase& c, std::ostream* out) { *out << to_text(c); }

}  // namespace xformers::testing
