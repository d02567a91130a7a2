// Threads: any number, also more than there is work; the same bits each time.
#include <atomic>
#include <cstring>
#include <new>
#include <system_error>
#include <vector>

#include "tests/kernels/attention_check.h"
#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/cpu/base/scratch.h"
#include "xformers/kernels/cpu/base/std_threads.h"

namespace xformers::testing {

INSTANTIATE_TEST_SUITE_P(Threads, AttentionCases,
                         cases({"attention:*,b1,q3,k5,h1,d8,t64", "attention:*,b2,q100,k90,h2,d32,t1",
                                "attention:*,b2,q100,k90,h2,d32,t3,causal", "attention:*,q1,k2000,h1,d64,t7",
                                "attention:*,q2,k700,h4,kv1,d64,t5,bias", "attention:bf16,q0,k5,h1,d8,t4",
                                "attention:fp32,q5+9+1,k33+70+4,h2,d32,t16,dlse"}),
                         test_name);

class Repeats : public ::testing::TestWithParam<AttentionCase> {};
TEST_P(Repeats, GiveTheSameBits) {
  AttentionRun first(GetParam());
  first.run();
  const std::vector<unsigned char> expected = first.output_bytes();
  for (int repeat = 0; repeat < 3; ++repeat) {
    AttentionRun again(GetParam());
    again.run();
    ASSERT_EQ(again.output_bytes(), expected) << "repeat " << repeat;
  }
}
INSTANTIATE_TEST_SUITE_P(Bits, Repeats,
                         cases({"attention:*,b2,q150,k170,h3,d64,causal_br,t2", "attention:*,q1,k3000,h4,kv2,d64,t3",
                                "attention:*,q170,k300,h1,d32,t4,bias,p0.1,dlse",
                                "attention:bf16,q9+80+30,k9+80+30,h2,d64,t5",
                                "attention:fp32,q40+9+70+30,k90+7+300+50,h3,d32,softcap3,alibi,sinks,bias@heads,t3",
                                "attention:bf16,q40+9+70,k90+7+300,h3,d32,softcap3,alibi@seqs,sinks,bias@seqs,t4"}),
                         test_name);

TEST(ForEachTask, RunsEveryTaskOnce) {
  for (int threads : {1, 2, 5, 40}) {
    for (int64_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
      std::atomic<int> bad_worker{0};
      cpu::for_each_task({threads, nullptr}, tasks, [&](int64_t task, int worker) {
        runs[task].fetch_add(1);
        if (worker < 0 || worker >= threads) bad_worker.fetch_add(1);
      });
      for (int64_t task = 0; task < tasks; ++task) EXPECT_EQ(runs[task].load(), 1) << tasks << " tasks, " << threads;
      EXPECT_EQ(bad_worker.load(), 0);
    }
  }
}

// The system starts two threads and no third: all the work is done all the same.
TEST(ForEachTask, NeedsNoThreadToBeStarted) {
  for (int can_start : {0, 2}) {
    static int left;
    left = can_start;
    const cpu::RunWorkers scarce = [](int workers, void (*body)(void*, int), void* context) {
      cpu::run_started_threads(workers, body, context, [](std::function<void()> work) {
        if (left-- == 0) throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
        return std::thread(std::move(work));
      });
    };
    std::vector<std::atomic<int>> runs(100);
    cpu::for_each_task({8, scarce}, 100, [&](int64_t task, int) { runs[task].fetch_add(1); });
    for (const auto& count : runs) EXPECT_EQ(count.load(), 1) << can_start;
  }
}

TEST(ForEachTask, BringsExceptionsToTheCaller) {
  for (int threads : {1, 4}) {
    EXPECT_THROW(cpu::for_each_task({threads, nullptr}, 100,
                                    [](int64_t task, int) {
                                      if (task % 10 == 3) throw std::bad_alloc();
                                    }),
                 std::bad_alloc)
        << threads;
  }
}

// A call from within another one's task, on the same thread.
TEST(ThreadScratch, TakenTwiceIsTwoBuffers) {
  const cpu::ThreadScratch outer(100);
  std::memset(outer.data(), 1, 100);
  for (size_t bytes : {50, 100000}) {
    const cpu::ThreadScratch inner(bytes);
    std::memset(inner.data(), 2, bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(inner.data()) % cpu::kScratchAlign, 0u);
  }
  for (int i = 0; i < 100; ++i) ASSERT_EQ(outer.data()[i], 1) << i;
}

// A caller's own pool, given as a plain function: the kernels ask it for no more workers than they were granted.
TEST(CallersThreads, AreUsedAndNotExceeded) {
  static int calls, largest;
  calls = largest = 0;
  const cpu::RunWorkers serial = [](int workers, void (*body)(void*, int), void* context) {
    ++calls;
    largest = std::max(largest, workers);
    for (int worker = workers - 1; worker >= 0; --worker) body(context, worker);
  };
  AttentionRun run(parse_attention_case("attention:fp32,b2,q300,k300,h4,d32"));
  cpu::attention_forward(run.forward_params(), {4, serial});
  cpu::attention_backward(run.backward_params(), {4, serial});
  EXPECT_GT(calls, 0);
  EXPECT_LE(largest, 4);
  EXPECT_TRUE(matches_reference(run));
}

}  // namespace xformers::testing
