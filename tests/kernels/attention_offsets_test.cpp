// Offsets of packed sequences are the caller's, and on a GPU no host has seen them: every kernel keeps to the tensors
// whatever they say, and rows of no sequence come out empty. Guard pages lie around every tensor of the CPU; on a GPU
// this file runs under memcheck.
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "tests/kernels/attention_backend.h"
#include "tests/kernels/attention_check.h"
#include "tests/kernels/forced_kernel.h"
#include "xformers/kernels/base/error.h"

namespace xformers::testing {
namespace {

constexpr int32_t kLow = std::numeric_limits<int32_t>::min(), kHigh = std::numeric_limits<int32_t>::max();

// As many offsets as sequences and one: late beginnings, descents, ends past the tensors, and all of them at once.
std::vector<std::vector<int32_t>> hostile_offsets(size_t count) {
  std::vector<std::vector<int32_t>> all;
  const auto add = [&](auto&& value_of) {
    std::vector<int32_t> offsets;
    for (size_t i = 0; i < count; ++i) offsets.push_back(value_of(static_cast<int32_t>(i)));
    all.push_back(offsets);
  };
  const auto last = static_cast<int32_t>(count) - 1;
  add([](int32_t i) { return i + 2; });                      // begin late
  add([](int32_t i) { return 1000 + 100 * i; });             // begin behind the end
  add([&](int32_t i) { return 3 * (last - i); });            // descend
  add([](int32_t i) { return i % 2 ? 0 : 5; });              // descend and rise
  add([](int32_t i) { return -5 * i; });                     // negative
  add([](int32_t i) { return i == 0 ? 0 : kHigh - i; });     // run out
  add([](int32_t i) { return i % 2 ? kHigh : kLow; });       // anything
  add([&](int32_t i) { return i == last ? kLow : kHigh; });  // the last before the first
  return all;
}

const std::vector<std::string> kPacked = {"attention:*,q1+1+1,k64+70+64,h8,kv1,d64",
                                          "attention:*,q1+1+1,k64+70+64,h8,kv1,d64,splits3",
                                          "attention:*,q3+2+4,k70+9+40,h2,d128,causal_br,dlse",
                                          "attention:*,q40+9+70,k30+150+60,h2,d64,causal",
                                          "attention:*,q40+9+70,k30+150+60,h2,d64,splits3",
                                          "attention:*,q40+9+70,k30+150+60,h2,d32,p0.2",
                                          "attention:*,q20+30+9,k30+40+50,h4,kv2,d40,dv24",
                                          "attention:*,q20+30+9,k90+64+70,used30+64+20,h2,d64,band20_0_br",
                                          "attention:*,q1+1+1,used64+20+30,page16,h4,kv2,d64"};

// Pairs of such offsets of queries and keys.
std::vector<std::pair<std::vector<int32_t>, std::vector<int32_t>>> hostile_pairs(const AttentionRun& run) {
  const auto q = hostile_offsets(run.cu_seqlens_q.size()), k = hostile_offsets(run.cu_seqlens_k.size());
  std::vector<std::pair<std::vector<int32_t>, std::vector<int32_t>>> pairs;
  for (size_t i = 0; i < q.size(); ++i) {
    pairs.emplace_back(q[i], k[i]);
    pairs.emplace_back(q[i], k[(i + 3) % k.size()]);
    pairs.emplace_back(q[i], run.cu_seqlens_k);
    pairs.emplace_back(run.cu_seqlens_q, k[i]);
  }
  return pairs;
}

// Calls test(run) with every case, the kernel forced; how many it takes. The others are refused.
template <class Test>
int for_each_taken(const std::string& kernel, bool backward, const std::vector<std::string>& texts, const Test& test) {
  int taken = 0;
  for (const AttentionCase& c : parse_attention_cases(texts)) {
    if (backward && c.forward_only()) continue;
    AttentionRun run(c);
    if (backward) run.forward();
    const ForcedKernel forced(kernel);
    try {
      backward ? run.backward() : run.forward();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(kernel), std::string::npos) << error.what();
      continue;
    }
    ++taken;
    test(run);
    const std::string last = last_kernels();
    EXPECT_TRUE(backward ? last.ends_with(", " + kernel) : last.starts_with(kernel + ", ")) << last;
  }
  return taken;
}

}  // namespace

class Offsets : public ::testing::TestWithParam<std::string> {};
class ForwardOffsets : public Offsets {};
class BackwardOffsets : public Offsets {};

TEST_P(ForwardOffsets, AreClampedToTheTensors) {
  const int taken = for_each_taken(GetParam(), false, kPacked, [](AttentionRun& run) {
    for (const auto& [q, k] : hostile_pairs(run)) {
      run.cu_seqlens_q = q;
      if (!run.forward_params().seq.paged()) run.cu_seqlens_k = k;  // the table has no more entries than it needs
      try {
        run.forward();
      } catch (const Error&) {  // the CPU sees the lengths, and has kernels for few rows
        continue;
      }
      EXPECT_EQ(run.damaged_output(), "") << to_text(run.attention_case());
    }
  });
  EXPECT_GT(taken, 0) << GetParam() << " takes none of the cases here";
}

TEST_P(BackwardOffsets, AreClampedToTheTensors) {
  const int taken = for_each_taken(GetParam(), true, kPacked, [](AttentionRun& run) {
    for (const auto& [q, k] : hostile_pairs(run)) {
      run.cu_seqlens_q = q;
      run.cu_seqlens_k = k;
      run.backward();
      EXPECT_EQ(run.damaged_output(), "") << to_text(run.attention_case());
    }
  });
  EXPECT_GT(taken, 0) << GetParam() << " takes none of the cases here";
}

// No sequences, and queries and keys all the same: out 0, lse -inf, gradients 0. The one entry of the offsets has
// nothing behind it.
const std::vector<std::string> kNobody = {
    "attention:*,q1,k64,h8,kv1,d64",      "attention:*,q2,k64,h4,kv1,d64,splits3",
    "attention:*,q40,k150,h2,d64,causal", "attention:*,q300,k20,h2,d128",
    "attention:*,q70,k0,h2,d64",          "attention:*,q33,k65,h2,d40,dv24,causal_br",
    "attention:*,q20,k40,h2,d32,p0.2",    "attention:*,q20,k40,h2,d32,wide"};

template <class Params>
Params without_sequences(Params params, const std::vector<int32_t>& offset) {
  params.seq = {};
  params.seq.cu_seqlens_q = params.seq.cu_seqlens_k = offset.data();
  return params;
}

void expect_all(const StridedTensor& tensor, double value, const std::string& what) {
  for (double x : tensor.values()) ASSERT_EQ(x, value) << what;
}

class ForwardOfNobody : public Offsets {};
TEST_P(ForwardOfNobody, IsEmpty) {
  const int taken = for_each_taken(GetParam(), false, kNobody, [](AttentionRun& run) {
    for (int32_t offset : {0, 2, 1000, -1}) {
      const std::vector<int32_t> one(1, offset);
      run_forward(without_sequences(run.forward_params(), one), 2);
      expect_all(run.out, 0, to_text(run.attention_case()) + ": out");
      expect_all(run.lse, -std::numeric_limits<double>::infinity(), to_text(run.attention_case()) + ": lse");
    }
  });
  EXPECT_GT(taken, 0) << GetParam() << " takes none of the cases here";
}

class BackwardOfNobody : public Offsets {};
TEST_P(BackwardOfNobody, IsZero) {
  const int taken = for_each_taken(GetParam(), true, kNobody, [](AttentionRun& run) {
    for (int32_t offset : {0, 2, 1000, -1}) {
      const std::vector<int32_t> one(1, offset);
      run_backward(without_sequences(run.backward_params(), one), 2);
      for (const StridedTensor* gradient : {&run.dq, &run.dk, &run.dv}) {
        expect_all(*gradient, 0, to_text(run.attention_case()) + ": a gradient");
      }
    }
  });
  EXPECT_GT(taken, 0) << GetParam() << " takes none of the cases here";
}

const auto kernel_name = [](const ::testing::TestParamInfo<std::string>& info) { return info.param; };
INSTANTIATE_TEST_SUITE_P(Kernels, ForwardOffsets, ::testing::ValuesIn(forward_kernels()), kernel_name);
INSTANTIATE_TEST_SUITE_P(Kernels, BackwardOffsets, ::testing::ValuesIn(backward_kernels()), kernel_name);
INSTANTIATE_TEST_SUITE_P(Kernels, ForwardOfNobody, ::testing::ValuesIn(forward_kernels()), kernel_name);
INSTANTIATE_TEST_SUITE_P(Kernels, BackwardOfNobody, ::testing::ValuesIn(backward_kernels()), kernel_name);

}  // namespace xformers::testing
