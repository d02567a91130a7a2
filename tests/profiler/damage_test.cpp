// Traces that are cut off anywhere, or hold nonsense anywhere: read as far as they go, with one sentence, without harm.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <stdexcept>
#include <string>

#include "xformers/ops/attention/attention_cost.h"
#include "xformers/profiler/analysis.h"
#include "xformers/profiler/c_api.h"
#include "xformers/profiler/ranks.h"

namespace xformers::profiler {
namespace {

std::string whole_trace() {
  return R"({"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "NVIDIA H200", "computeMajor": 9}],
"distributedInfo": {"rank": 3, "world_size": 8}, "traceEvents": [
{"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#1", "pid": 1, "tid": 1, "ts": 0.5, "dur": 90, "args": {}},
{"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 1, "tid": 1, "ts": 1, "dur": 10, "args": {"External id": 4,
"Input Dims": [[4, 8], [8, 16]], "Input type": ["float", "float"], "Concrete Inputs": ["", ""], "Sequence number": 2}},
{"ph": "X", "cat": "cpu_op", "name": "xformers::tiled_matmul", "pid": 1, "tid": 1, "ts": 20, "dur": 10, "args": {
"Input Dims": [[[2, 3]], [[3, 4]], [], [], []], "Input type": ["TensorList", "TensorList", "", "", ""],
"Concrete Inputs": ["", "", "[2]", "[4]", "[3]"]}},
{"ph": "X", "cat": "kernel", "name": "gemm", "pid": 0, "tid": 7, "ts": 12, "dur": 30, "args": {"External id": 4, "correlation": 9}},
{"ph": "i", "name": "[memory]", "ts": 3, "args": {"Total Allocated": 640, "Bytes": 640, "Device Id": -1}}
], "traceName": "made up"})";
}

TEST(Trace, WholeOne) {
  const Analysis analysis = analyze_text(whole_trace());
  EXPECT_EQ(analysis.info.problem, "");
  EXPECT_EQ(analysis.info.rank, 3);
  EXPECT_EQ(analysis.info.device, "NVIDIA H200");
  EXPECT_EQ(analysis.info.events, 5);
  EXPECT_EQ(analysis.operations.forward.at("float32"), 2 * 4 * 8 * 16);
  EXPECT_EQ(analysis.operations.forward.at("unknown"), 2 * 2 * 3 * 4);  // a list's elements have no type in a trace
  EXPECT_EQ(analysis.peak_bytes, 640);
  ASSERT_EQ(analysis.steps.size(), 1);
  EXPECT_EQ(analysis.steps[0].parts[static_cast<size_t>(Part::kProducts)], 30);
}

TEST(Trace, CutOffAnywhere) {
  const std::string whole = whole_trace();
  int64_t most = 0;
  for (size_t length = 0; length < whole.size(); ++length) {
    const Analysis analysis = analyze_text(std::string_view(whole).substr(0, length));
    EXPECT_NE(analysis.info.problem, "") << length;
    EXPECT_GE(analysis.info.events, most) << "nothing is lost, " << length;
    most = std::max(most, analysis.info.events);
  }
  EXPECT_EQ(most, 5);
}

TEST(Trace, NonsenseAnywhere) {
  const std::string whole = whole_trace();
  std::mt19937 random(0);
  for (int round = 0; round < 3000; ++round) {
    std::string damaged = whole;
    for (int i = 0; i < 3; ++i) damaged[random() % damaged.size()] = "{}[]\",:-0e\\\xff\x01n"[random() % 14];
    const Analysis analysis = analyze_text(damaged);  // whatever it says, it returns
    EXPECT_LE(analysis.info.events, 6);
  }
}

TEST(Trace, ValuesOfOtherKinds) {
  for (
      const char* event :
      {R"({"ph": 1, "name": 2, "ts": "x", "dur": null, "args": 7})", R"({"ph": "X", "args": [1, {"a": [[[[1]]]]}]})",
       R"({"ph": "X", "cat": "cpu_op", "name": "aten::mm", "args": {"Input Dims": [[], 3, [[[]]]], "Input type": [1]}})",
       R"({"ph": "X", "cat": "cpu_op", "name": "xformers::attention_forward", "ts": 1e300, "dur": -5, "args": {}})"}) {
    const Analysis analysis = analyze_text(std::string("[") + event + "]");
    EXPECT_EQ(analysis.info.problem, "") << event;
  }
}

TEST(CApi, AnswersEveryRequest) {
  for (const char* request : {"", "null", "[]", "{}", R"({"function": "no"})", R"({"function": "cost"})",
                              R"({"function": "report", "folder": "/nonexistent"})", "\xff"}) {
    char* reply = xformers_profiler_call(request);
    EXPECT_PRED_FORMAT2(testing::IsSubstring, "\"error\"", reply) << request;
    xformers_profiler_free(reply);
  }
}

// What one of them throws, be it on the calling thread, reaches the caller when all have ended.
TEST(Parallel, ThrowsTheFirstExceptionAtTheEnd) {
  for (size_t threads : {1, 4}) {
    std::atomic<int> called{0};
    const auto body = [&](size_t i) {
      ++called;
      if (i % 5 == 0) throw std::runtime_error("damaged");
    };
    EXPECT_THROW(for_each_parallel(16, threads, body), std::runtime_error);
    EXPECT_EQ(called, 16);
  }
}

// Pairs one by one.
TEST(Cost, PairsThatABandLetsThrough) {
  for (int64_t m = 0; m < 9; ++m) {
    for (int64_t n = 0; n < 9; ++n) {
      for (int64_t left = -1; left < 6; ++left) {
        for (int64_t right = -1; right < 6; ++right) {
          for (bool bottom_right : {false, true}) {
            int64_t pairs = 0, diagonal = 0;
            for (int64_t i = 0; i < m; ++i) {
              for (int64_t j = 0; j < n; ++j) {
                const int64_t away = j - i - (bottom_right ? n - m : 0);
                pairs += (left < 0 || away >= -left) && (right < 0 || away <= right);
                diagonal += away == 0;
              }
            }
            const bool halves = right == 0 && (left < 0 || left + 1 >= n);
            EXPECT_EQ(ops::twice_seen_pairs(m, n, {left, right, bottom_right}), 2 * pairs - (halves ? diagonal : 0))
                << m << " " << n << " " << left << " " << right << " " << bottom_right;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace xformers::profiler
