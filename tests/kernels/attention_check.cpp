#include "tests/kernels/attention_check.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <utility>

#include "tests/kernels/attention_backend.h"
#include "tests/kernels/kept_references.h"
#include "tests/reference/rounding.h"

namespace xformers::testing {
namespace {

using reference::AttentionResult;
using reference::Values;

constexpr int64_t kNeighbours = 256;                // elements that share one budget
constexpr double kPlainFactor = 2, kRoundings = 4;  // two ulp

struct Quantity {
  const char* name;
  Values AttentionResult::* member;
};
constexpr Quantity kQuantities[] = {{"out", &AttentionResult::out},         {"lse", &AttentionResult::lse},
                                    {"dq", &AttentionResult::dq},           {"dk", &AttentionResult::dk},
                                    {"dv", &AttentionResult::dv},           {"dbias", &AttentionResult::dbias},
                                    {"dslopes", &AttentionResult::dslopes}, {"dsinks", &AttentionResult::dsinks}};
constexpr size_t kForwardQuantities = 2;

std::string index_text(int64_t index, const Sizes& sizes) {
  std::string text;
  for (int dim = 4; dim >= 0; --dim) {
    const std::string digit = std::to_string(index % sizes[dim]);
    text = text.empty() ? digit : digit + ", " + text;
    index /= sizes[dim];
  }
  return "[" + text + "]";
}

bool same_kind(double got, double expected) {
  if (std::isnan(expected)) return std::isnan(got);
  if (std::isinf(expected)) return got == expected;
  return std::isfinite(got);
}

double distance(double a, double b) { return std::isfinite(a) && std::isfinite(b) ? std::abs(a - b) : 0; }

// {kernel, quantity} -> largest error / budget so far.
std::map<std::pair<std::string, std::string>, double> largest_ratios;

// "" or what is wrong with one output; `largest` rises to the largest error / budget.
std::string compare(const Sizes& sizes, double unit, const Values& got, const Values& expected, const Values& plain,
                    const Values& roundings, double& largest) {
  std::ostringstream text;
  text.precision(9);
  const int64_t count = static_cast<int64_t>(expected.size());
  if (static_cast<int64_t>(got.size()) != count) return "has another size than the reference";

  for (int64_t i = 0; i < count; ++i) {
    if (same_kind(got[i], expected[i])) continue;
    int64_t wrong = 0;
    for (int64_t j = i; j < count; ++j) wrong += !same_kind(got[j], expected[j]);
    text << "at " << index_text(i, sizes) << " got " << got[i] << ", expected " << expected[i] << "; " << wrong
         << " of " << count << " elements are Inf or NaN, or finite, where they should not be";
    return text.str();
  }

  const int64_t chunks = std::max<int64_t>(1, count / kNeighbours);
  int64_t worst = -1, wrong = 0;
  double worst_budget = 0, worst_ratio = 1;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = count * chunk / chunks, end = count * (chunk + 1) / chunks;
    double plain_error = 0, rounding = 0;
    for (int64_t i = begin; i < end; ++i) {
      plain_error = std::max(plain_error, distance(plain[i], expected[i]));
      rounding = std::max({rounding, roundings[i], std::isfinite(expected[i]) ? unit * std::abs(expected[i]) : 0});
    }
    const double budget = kPlainFactor * plain_error + kRoundings * rounding;
    for (int64_t i = begin; i < end; ++i) {
      const double error = distance(got[i], expected[i]);
      const double ratio = error == 0 ? 0 : budget > 0 ? error / budget : INFINITY;
      largest = std::max(largest, ratio);
      if (error <= budget) continue;
      ++wrong;
      if (worst < 0 || ratio > worst_ratio) worst = i, worst_ratio = ratio, worst_budget = budget;
    }
  }
  if (wrong == 0) return "";
  text << "at " << index_text(worst, sizes) << " got " << got[worst] << ", expected " << expected[worst] << " (plain "
       << plain[worst] << "): error " << distance(got[worst], expected[worst]) << ", budget " << worst_budget << "; "
       << wrong << " of " << count << " elements are over budget";
  return text.str();
}

}  // namespace

::testing::AssertionResult matches_reference(const AttentionRun& run, bool gradients) {
  const AttentionCase& c = run.attention_case();
  const AttentionResult got = run.result();
  const auto& [expected, plain, roundings] = references(run.problem(), c.dtype);
  const StridedTensor* tensors[] = {&run.out, &run.lse,   &run.dq,      &run.dk,
                                    &run.dv,  &run.dbias, &run.dslopes, &run.dsinks};

  std::string problems;
  for (size_t i = 0; i < std::size(kQuantities); ++i) {
    const auto& [name, member] = kQuantities[i];
    if ((expected.*member).empty() && (got.*member).empty()) continue;
    if ((c.forward_only() || !gradients) && i >= kForwardQuantities) continue;
    const double unit = reference::unit_roundoff(tensors[i]->dtype());
    const std::string kernel = i < kForwardQuantities ? last_forward_kernel() : last_backward_kernel();
    const std::string text = compare(tensors[i]->sizes(), unit, got.*member, expected.*member, plain.*member,
                                     roundings.*member, largest_ratios[{kernel, name}]);
    if (!text.empty()) problems += std::string("\n  ") + name + " " + text;
  }
  if (const std::string name = run.damaged_output(); !name.empty())
    problems += "\n  memory around " + name + " was written to";
  if (problems.empty()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "--case=" << to_text(c) << " (seed " << c.seed << ", " << last_kernels()
                                       << ")" << problems;
}

::testing::AssertionResult matches_reference(const AttentionCase& c) {
  AttentionRun run(c);
  run.run();
  return matches_reference(run);
}

void report_ratios() {
  const char* const path = std::getenv("XFORMERS_TEST_RATIOS");
  std::ofstream file;
  if (path) file.open(path, std::ios::app);
  std::ostringstream lines;  // written at once: many programs share the file
  for (const auto& [key, ratio] : largest_ratios) lines << key.first << ' ' << key.second << ' ' << ratio << '\n';
  if (path) {
    file << lines.str();
  } else if (!largest_ratios.empty()) {
    std::cout << "largest error / budget:\n" << lines.str();
  }
}

TEST_P(AttentionCases, MatchesReference) { EXPECT_TRUE(matches_reference(GetParam())); }

std::string test_name(const ::testing::TestParamInfo<AttentionCase>& info) {
  std::string name = to_text(info.param).substr(std::string_view("attention:").size());
  for (char& letter : name) {
    if (!std::isalnum(static_cast<unsigned char>(letter))) letter = '_';
  }
  return name;
}

}  // namespace xformers::testing
