// The kernel list: every kernel and every instruction set is forced and must be the one that ran.
#include <algorithm>
#include <cstdlib>
#include <ostream>

#include "tests/kernels/attention_check.h"
#include "tests/kernels/random_case.h"
#include "xformers/kernels/base/error.h"
#include "xformers/kernels/base/kernel_list.h"
#include "xformers/kernels/cpu/base/isa_choice.h"

namespace xformers::cpu {
inline void PrintTo(Isa isa, std::ostream* out) { *out << name_of(isa); }  // for GoogleTest
}  // namespace xformers::cpu

namespace xformers::testing {
namespace {

// Sets an environment variable for one scope.
class ScopedEnvironment {
 public:
  ScopedEnvironment(const char* name, const std::string& value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old, had_ = true;
    setenv(name, value.c_str(), 1);
  }
  ~ScopedEnvironment() { had_ ? setenv(name_, old_.c_str(), 1) : unsetenv(name_); }

 private:
  const char* name_;
  std::string old_;
  bool had_ = false;
};

const std::vector<std::string> kSelected = {"attention:*,b2,q70,k83,h2,d64",
                                            "attention:*,b1,q130,k130,h2,d128,causal_br,dlse",
                                            "attention:*,q33,k64,h2,d40,dv24",
                                            "attention:*,q1,k300,h8,kv2,d64",
                                            "attention:*,q5+0+70,k9+33+64,h2,d32,causal",
                                            "attention:*,q41,k75,h2,d32,bias@odd",
                                            "attention:*,q64,k97,h2,d64,p0.2",
                                            "attention:*,q150,k150,h1,d80,band20_0",
                                            "attention:*,q20,k30,h1,d257",
                                            "attention:*,q3,k500,h8,kv2,d128,causal_br",
                                            "attention:*,q1,k200,h4,kv1,d64,bias_prefix70",
                                            "attention:*,q1+1,k100+64,h4,kv2,d64",
                                            "attention:*,q1,k129,h2,d72,dv80,p0.3",
                                            "attention:*,q1+1,used100+77,page16,h8,kv2,d64",
                                            "attention:*,q70+30,from3+50,used100+77,page64@shared,h2,d40,causal_br",
                                            "attention:*,q1+2,k300,from40+7,used200+90,h4,kv1,d64,wide",
                                            "attention:*,q1,k150,h8,kv2,d64,int4_4",
                                            "attention:*,q40,k90,h2,d32,fp8,splits3"};

std::string join(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : "; ") + part;
  return text;
}

// Kernels end in the name of their instruction set: fwd_avx512.
cpu::Isa isa_of(std::string_view kernel) {
  for (cpu::Isa isa : cpu::kAllIsas) {
    if (kernel.ends_with("_" + std::string(cpu::name_of(isa)))) return isa;
  }
  ADD_FAILURE() << kernel << " names no instruction set";
  return cpu::Isa::kPortable;
}

bool can_run(std::string_view kernel) { return cpu::is_built(isa_of(kernel)) && cpu::has_isa(isa_of(kernel)); }

// The last of a list of kernels that this build has.
std::string last_built(std::vector<std::string> kernels) {
  std::erase_if(kernels, [](const std::string& kernel) { return !cpu::is_built(isa_of(kernel)); });
  return kernels.back();
}

}  // namespace

class EachForced : public ::testing::TestWithParam<std::string> {};

// Runs the selected cases that `kernel` takes and returns how many those were; `why_not` and `run` pick the direction.
template <class WhyNot, class Run>
int force(const std::string& kernel, bool backward, const WhyNot& why_not, const Run& run, std::string& reasons) {
  int taken = 0;
  for (const AttentionCase& c : parse_attention_cases(kSelected)) {
    if (backward && c.forward_only()) continue;
    AttentionRun r(c);
    if (const auto objections = why_not(kernel, r); !objections.empty()) {
      reasons = join(objections);
      continue;
    }
    ++taken;
    run(r);
    EXPECT_TRUE(matches_reference(r));
  }
  return taken;
}

class ForcedForward : public EachForced {};
TEST_P(ForcedForward, IsTheOneThatRuns) {
  if (!can_run(GetParam())) GTEST_SKIP() << "this build or this processor has no " << GetParam();
  std::string reasons;
  const auto why_not = [](const std::string& kernel, const AttentionRun& r) {
    return cpu::why_not_forward(kernel, r.forward_params());
  };
  const int taken = force(
      GetParam(), false, why_not,
      [&](AttentionRun& r) {
        {
          const ScopedEnvironment forced("XFORMERS_KERNEL", GetParam());
          r.forward();
        }
        EXPECT_EQ(cpu::last_forward_kernel(), GetParam());
        if (!r.attention_case().forward_only()) r.backward();
      },
      reasons);
  EXPECT_GT(taken, 0) << GetParam() << " takes none of the cases here: " << reasons;
}

class ForcedBackward : public EachForced {};
TEST_P(ForcedBackward, IsTheOneThatRuns) {
  if (!can_run(GetParam())) GTEST_SKIP() << "this build or this processor has no " << GetParam();
  std::string reasons;
  const auto why_not = [](const std::string& kernel, const AttentionRun& r) {
    return cpu::why_not_backward(kernel, r.backward_params());
  };
  const int taken = force(
      GetParam(), true, why_not,
      [&](AttentionRun& r) {
        r.forward();
        {
          const ScopedEnvironment forced("XFORMERS_KERNEL", GetParam());
          r.backward();
        }
        EXPECT_EQ(cpu::last_backward_kernel(), GetParam());
      },
      reasons);
  EXPECT_GT(taken, 0) << GetParam() << " takes none of the cases here: " << reasons;
}

const auto kernel_name = [](const ::testing::TestParamInfo<std::string>& info) { return info.param; };
INSTANTIATE_TEST_SUITE_P(Kernels, ForcedForward, ::testing::ValuesIn(cpu::forward_kernels()), kernel_name);
INSTANTIATE_TEST_SUITE_P(Kernels, ForcedBackward, ::testing::ValuesIn(cpu::backward_kernels()), kernel_name);

// XFORMERS_CPU_ISA names the highest instruction set to use.
class ForcedIsa : public ::testing::TestWithParam<cpu::Isa> {};
TEST_P(ForcedIsa, GivesTheSameAnswers) {
  const std::string isa = cpu::name_of(GetParam());
  if (!cpu::has_isa(GetParam())) GTEST_SKIP() << "this processor has no " << isa;
  const ScopedEnvironment forced("XFORMERS_CPU_ISA", isa);
  if (!cpu::is_built(GetParam())) {
    AttentionRun run(parse_attention_case("attention:fp16,q4,k4,d8"));
    EXPECT_THROW(run.forward(), Error);
    GTEST_SKIP() << "this build has no kernel for " << isa << "; asking for it is refused";
  }

  constexpr uint64_t kRandomCases = 40;
  std::vector<AttentionCase> cases = parse_attention_cases(kSelected);
  for (uint64_t seed = 1001; seed <= 1000 + kRandomCases; ++seed) cases.push_back(random_case(seed));
  int own_forward = 0, own_backward = 0;
  for (const AttentionCase& c : cases) {
    AttentionRun run(c);
    run.run();
    EXPECT_LE(isa_of(cpu::last_forward_kernel()), GetParam()) << cpu::last_forward_kernel();
    own_forward += isa_of(cpu::last_forward_kernel()) == GetParam();
    if (!c.forward_only()) {
      EXPECT_LE(isa_of(cpu::last_backward_kernel()), GetParam()) << cpu::last_backward_kernel();
      own_backward += isa_of(cpu::last_backward_kernel()) == GetParam();
    }
    EXPECT_TRUE(matches_reference(run));
  }
  EXPECT_GT(own_forward, 0) << "no forward ran on " << isa;
  EXPECT_GT(own_backward, 0) << "no backward ran on " << isa;
}
INSTANTIATE_TEST_SUITE_P(Isas, ForcedIsa, ::testing::ValuesIn(cpu::kAllIsas),
                         [](const ::testing::TestParamInfo<cpu::Isa>& info) {
                           return std::string(cpu::name_of(info.param));
                         });

TEST(KernelList, LastKernelTakesEverything) {
  std::vector<std::string> texts = kSelected;
  texts.insert(texts.end(), {"attention:*,q0,k5,d1", "attention:*,q5,k0,d512,dv1,p0.5,bias@cols"});
  for (const AttentionCase& c : parse_attention_cases(texts)) {
    const AttentionRun run(c);
    EXPECT_EQ(join(cpu::why_not_forward(last_built(cpu::forward_kernels()), run.forward_params())), "") << to_text(c);
    if (c.forward_only()) continue;
    EXPECT_EQ(join(cpu::why_not_backward(last_built(cpu::backward_kernels()), run.backward_params())), "")
        << to_text(c);
  }
}

TEST(KernelList, NamesAreUnique) {
  for (std::vector<std::string> names : {cpu::forward_kernels(), cpu::backward_kernels()}) {
    std::sort(names.begin(), names.end());
    EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
    EXPECT_FALSE(names.empty());
  }
}

TEST(KernelList, UnknownNameIsRefusedWithTheList) {
  const AttentionRun run(parse_attention_case("attention:fp32,q4,k4,d8"));
  const ScopedEnvironment forced("XFORMERS_KERNEL", "fwd_of_dreams");
  try {
    cpu::attention_forward(run.forward_params(), {1, nullptr});
    FAIL() << "a kernel that does not exist was accepted";
  } catch (const Error& error) {
    const std::string what = error.what();
    EXPECT_NE(what.find("XFORMERS_KERNEL is fwd_of_dreams"), std::string::npos) << what;
    for (const std::string& name : cpu::forward_kernels()) EXPECT_NE(what.find(name), std::string::npos) << what;
  }
}

// Names of all devices' lists are known to every one of them: a slip of the keyboard is answered with the nearest.
TEST(KernelList, UnknownNameIsAnsweredWithTheNearest) {
  const AttentionRun run(parse_attention_case("attention:fp32,q4,k4,d8"));
  for (const auto& [name, nearest] :
       {std::pair{"fwd_protable", "fwd_portable"}, std::pair{"bwd_portabel", "bwd_portable"},
        std::pair{"FWD_avx2", "fwd_avx2"}, std::pair{"fwd_avx51", "fwd_avx512"}}) {
    const ScopedEnvironment forced("XFORMERS_KERNEL", name);
    try {
      cpu::attention_forward(run.forward_params(), {1, nullptr});
      ADD_FAILURE() << name << " was accepted";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(std::string("the nearest is ") + nearest), std::string::npos)
          << error.what();
    }
  }
}

// A kernel of another list, of the other direction or of another device, leaves this one free.
TEST(KernelList, NameOfAnotherListForcesNothing) {
  static constexpr struct {
    const char* name;
  } kElsewhere[] = {{"fwd_on_the_moon"}};
  static const KernelNames names(kElsewhere);
  const AttentionRun run(parse_attention_case("attention:fp32,q4,k4,d8"));
  for (const char* name : {"fwd_on_the_moon", "bwd_portable"}) {
    const ScopedEnvironment forced("XFORMERS_KERNEL", name);
    EXPECT_NO_THROW(cpu::attention_forward(run.forward_params(), {1, nullptr})) << name;
  }
}

TEST(KernelList, UnknownIsaIsRefused) {
  const AttentionRun run(parse_attention_case("attention:fp32,q4,k4,d8"));
  const ScopedEnvironment forced("XFORMERS_CPU_ISA", "abacus");
  EXPECT_THROW(cpu::attention_forward(run.forward_params(), {1, nullptr}), Error);
}

}  // namespace xformers::testing
