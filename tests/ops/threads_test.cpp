// Kernels run on LibTorch's threads, at the same time.
#include "xformers/ops/common/threads.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>

namespace xformers::ops {
namespace {

// Two tasks that wait for each other finish only if two workers run at the same time.
TEST(Threads, WorkersRunAtTheSameTime) {
  at::set_num_threads(2);
  const cpu::Threads threads = torch_threads();
  ASSERT_EQ(threads.num_threads, 2);
  std::mutex mutex;
  std::condition_variable changed;
  int arrived = 0, met = 0;
  std::set<std::thread::id> ids;
  cpu::for_each_task(threads, 2, [&](int64_t, int) {
    std::unique_lock lock(mutex);
    ids.insert(std::this_thread::get_id());
    ++arrived;
    changed.notify_all();
    met += changed.wait_for(lock, std::chrono::seconds(20), [&] { return arrived == 2; });
  });
  EXPECT_EQ(met, 2);
  EXPECT_EQ(ids.size(), 2u);
}

TEST(Threads, EveryTaskRunsOnce) {
  std::vector<int> runs(1000, 0);
  cpu::for_each_task(torch_threads(), 1000, [&](int64_t task, int) { ++runs[task]; });
  EXPECT_EQ(runs, std::vector<int>(1000, 1));
}

TEST(Threads, FollowTheCallersSetting) {
  at::set_num_threads(1);
  EXPECT_EQ(torch_threads().num_threads, 1);
  at::set_num_threads(2);
  EXPECT_EQ(torch_threads().num_threads, 2);
}

TEST(Threads, ExceptionsReachTheCaller) {
  const auto throwing = [](void*, int worker) {
    if (worker == 1) throw std::runtime_error("worker 1");
  };
  EXPECT_THROW(torch_threads().run(2, throwing, nullptr), std::runtime_error);
}

}  // namespace
}  // namespace xformers::ops
