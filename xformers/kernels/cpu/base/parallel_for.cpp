#include "xformers/kernels/cpu/base/parallel_for.h"

#include <atomic>
#include <exception>
#include <thread>
#include <vector>

#include "xformers/kernels/cpu/base/std_threads.h"

namespace xformers::cpu {

Threads default_threads() {
  const unsigned count = std::thread::hardware_concurrency();
  return {count > 0 ? static_cast<int>(count) : 1, run_std_threads};
}

void run_started_threads(int num_workers, void (*body)(void* context, int worker), void* context,
                         const StartThread& start) {
  std::exception_ptr error;
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  const auto run = [&](int worker) {
    try {
      body(context, worker);
    } catch (...) {
      if (!failed.test_and_set()) error = std::current_exception();
    }
  };
  std::vector<std::thread> helpers;
  int started = 1;
  try {
    helpers.reserve(num_workers - 1);
    for (; started < num_workers; ++started) helpers.push_back(start([&run, started] { run(started); }));
  } catch (const std::exception&) {  // the system has no more threads, or memory for one
  }
  run(0);
  for (int worker = started; worker < num_workers; ++worker) run(worker);
  for (std::thread& helper : helpers) helper.join();
  if (error) std::rethrow_exception(error);
}

void run_std_threads(int num_workers, void (*body)(void* context, int worker), void* context) {
  run_started_threads(num_workers, body, context,
                      [](std::function<void()> work) { return std::thread(std::move(work)); });
}

}  // namespace xformers::cpu
