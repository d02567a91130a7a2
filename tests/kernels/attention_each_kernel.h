// Tests over every kernel of the lists: each is forced, takes the cases that it can, at least one of them, and must be
// the one that ran.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/kernels/attention_backend.h"
#include "tests/kernels/attention_check.h"
#include "tests/kernels/forced_kernel.h"
#include "xformers/kernels/base/error.h"

namespace xformers::testing {

// What runs of a case where a kernel of forward is forced, and where one of backward is: both directions, the other one
// by its own choice; the forced one and what it needs; forward, and nothing.
enum class Runs { kBoth, kItsOwn, kForward };

// What a test makes of each case: prepare(run) before it runs, check(run) behind. A kernel that has `subject`, a word
// of its objections, against every case is no subject of the test.
class EachKernel : public ::testing::TestWithParam<std::string> {
 protected:
  static bool forces_backward() { return GetParam().starts_with("bwd"); }

  template <class Prepare, class Check>
  void force(const std::vector<std::string>& texts, const Prepare& prepare, const Check& check, Runs runs = Runs::kBoth,
             const std::string& subject = "") {
    const bool backward = forces_backward();
    if (backward && runs == Runs::kForward) GTEST_SKIP() << "of forward alone";
    int taken = 0, others = 0;
    for (const AttentionCase& c : parse_attention_cases(texts)) {
      if (backward && c.forward_only()) continue;
      AttentionRun run(c);
      prepare(run);
      try {
        if (backward) run.forward();
        const ForcedKernel forced(GetParam());
        backward ? run.backward() : run.forward();
      } catch (const Error& error) {
        const std::string text = error.what();
        const size_t objections = text.find(GetParam());
        EXPECT_NE(objections, std::string::npos) << text;
        if (subject.empty() || text.find(subject, objections) == std::string::npos) ++others;
        continue;
      }
      ++taken;
      EXPECT_EQ(backward ? last_backward_kernel() : last_forward_kernel(), GetParam());
      if (!backward && runs == Runs::kBoth && !c.forward_only()) run.backward();
      check(run);
    }
    if (taken == 0 && others == 0) GTEST_SKIP() << GetParam() << " takes no " << subject;
    EXPECT_GT(taken, 0);
  }
};

inline std::vector<std::string> each_kernel() {
  std::vector<std::string> names = forward_kernels();
  for (const std::string& name : backward_kernels()) names.push_back(name);
  return names;
}
inline std::string kernel_name(const ::testing::TestParamInfo<std::string>& info) { return info.param; }

}  // namespace xformers::testing
