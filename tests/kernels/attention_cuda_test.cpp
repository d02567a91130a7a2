// The CUDA kernel list: every kernel is forced and must be the one that ran; the deterministic backward repeats bit for
// bit. (The other test files of this program are the CPU's, on another backend.)
#include "xformers/kernels/cuda/attention/attention_cuda.h"

#include <algorithm>

#include "tests/kernels/attention_check.h"
#include "tests/kernels/forced_kernel.h"
#include "xformers/kernels/base/error.h"

namespace xformers::testing {
namespace {

// Without a GPU nothing runs, and nothing may count as passed: ctest knows the first word. (A GTEST_SKIP here would
// report every test as passed.)
class NeedsGpu : public ::testing::Environment {
 public:
  void SetUp() override {
    if (const std::string reason = cuda::why_not_this_device(); !reason.empty()) {
      std::cout << "[  SKIPPED ] every test: " << reason << std::endl;
      std::exit(EXIT_SUCCESS);
    }
  }
};
const auto* const kNeedsGpu = ::testing::AddGlobalTestEnvironment(new NeedsGpu);

const std::vector<std::string> kSelected = {"attention:*,b2,q70,k83,h2,d64",
                                            "attention:*,b1,q130,k130,h2,d128,causal_br,dlse",
                                            "attention:*,q200,k333,h2,d32,causal",
                                            "attention:*,q33,k64,h2,d40,dv24",
                                            "attention:*,q300,k300,h1,d96,band50_20",
                                            "attention:*,q140,k150,h2,d192",
                                            "attention:*,q140,k150,h1,d256,causal_br",
                                            "attention:*,q1,k300,h8,kv2,d64",
                                            "attention:*,q5+0+70,k9+33+64,h2,d32,causal",
                                            "attention:*,q41,k75,h2,d32,bias@odd",
                                            "attention:*,q64,k97,h2,d64,p0.2",
                                            "attention:*,q150,k150,h1,d80,band20_0",
                                            "attention:*,q20,k30,h1,d257",
                                            "attention:*,q3,k500,h8,kv2,d128,causal_br",
                                            "attention:*,q1,k129,h2,d72,dv80,p0.3"};

class ForcedForward : public ::testing::TestWithParam<std::string> {};
TEST_P(ForcedForward, IsTheOneThatRuns) {
  int taken = 0;
  for (const AttentionCase& c : parse_attention_cases(kSelected)) {
    AttentionRun run(c);
    const ForcedKernel forced(GetParam());
    try {
      run.forward();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(GetParam()), std::string::npos) << error.what();
      continue;
    }
    ++taken;
    EXPECT_EQ(cuda::last_forward_kernel(), GetParam());
    run.backward();
    EXPECT_TRUE(matches_reference(run));
  }
  EXPECT_GT(taken, 0);
}

class ForcedBackward : public ::testing::TestWithParam<std::string> {};
TEST_P(ForcedBackward, IsTheOneThatRuns) {
  int taken = 0;
  for (const AttentionCase& c : parse_attention_cases(kSelected)) {
    AttentionRun run(c);
    run.forward();
    const ForcedKernel forced(GetParam());
    try {
      run.backward();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(GetParam()), std::string::npos) << error.what();
      continue;
    }
    ++taken;
    EXPECT_EQ(cuda::last_backward_kernel(), GetParam());
    EXPECT_TRUE(matches_reference(run));
  }
  EXPECT_GT(taken, 0);
}

const auto kernel_name = [](const ::testing::TestParamInfo<std::string>& info) { return info.param; };
INSTANTIATE_TEST_SUITE_P(Kernels, ForcedForward, ::testing::ValuesIn(cuda::forward_kernels()), kernel_name);
INSTANTIATE_TEST_SUITE_P(Kernels, ForcedBackward, ::testing::ValuesIn(cuda::backward_kernels()), kernel_name);

// t1 asks for the deterministic mode (attention_backend_cuda.cpp).
class Deterministic : public ::testing::TestWithParam<AttentionCase> {};
TEST_P(Deterministic, GivesTheSameBits) {
  AttentionRun first(GetParam());
  first.run();
  EXPECT_TRUE(matches_reference(first));
  const std::vector<unsigned char> expected = first.output_bytes();
  for (int repeat = 0; repeat < 4; ++repeat) {
    AttentionRun again(GetParam());
    again.run();
    ASSERT_EQ(again.output_bytes(), expected) << "repeat " << repeat;
  }
}
INSTANTIATE_TEST_SUITE_P(
    Bits, Deterministic,
    cases({"attention:bf16,b1,q700,k900,h3,d64,causal_br,t1", "attention:fp16,q600,k1100,h2,d128,t1",
           "attention:bf16,q500,k700,h1,d256,t1,bias,p0.1,dlse",
           "attention:bf16,q9+280+130,k9+480+300,h2,d64,causal,t1", "attention:fp32,q170,k300,h1,d32,t1,bias,p0.1,dlse",
           "attention:fp32,q9+180+70,k9+280+300,h2,d128,causal,t1",
           "attention:bf16,q300,k700,h3,d128,softcap2,alibi,sinks,t1",
           "attention:fp16,q130+9+270,k280+7+300,h3,d64,softcap3,alibi@seqs,sinks@seqs,bias,t1",
           "attention:fp32,q130+9+70,k280+7+300,h3,d64,softcap3,alibi,sinks,t1",
           "attention:bf16,q140+9+70,k290+7+300,h3,d64,softcap3,alibi,sinks,bias@heads,t1",
           "attention:fp32,q40+9+70+30,k90+7+300+50,h4,d32,bias@seqs,t1"}),
    test_name);

// Tensor cores cut sums off instead of rounding them: long ones must not drift.
INSTANTIATE_TEST_SUITE_P(LongSums, AttentionCases,
                         cases({"attention:fp32,q40,k9000,h1,d64", "attention:fp32,q9000,k40,h1,d64",
                                "attention:fp32,q40,k9000,h1,d128,amp3", "attention:fp32,q6000,k40,h1,d128"}),
                         test_name);

TEST(KernelList, UnbuiltNameIsRefusedWithReasons) {
  AttentionRun run(parse_attention_case("attention:fp32,q4,k4,d8"));
  const ForcedKernel forced("fwd_sm80");
  try {
    run.forward();
    FAIL() << "fp32 on tensor cores was accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("dtype is fp32"), std::string::npos) << error.what();
  }
}

// The CPU's kernels are in no list here; what is in none at all is a slip of the keyboard.
TEST(KernelList, OnlyKnownNamesAreTaken) {
  AttentionRun run(parse_attention_case("attention:fp32,q4,k4,d8"));
  {
    const ForcedKernel other("fwd_portable");
    EXPECT_NO_THROW(run.forward());
  }
  const ForcedKernel wrong("fwd_smm80");
  try {
    run.forward();
    FAIL() << "a kernel that does not exist was accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("the nearest is fwd_sm80"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace xformers::testing
