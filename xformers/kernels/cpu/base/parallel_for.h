// How CPU kernels use the caller's threads: a plain function, so that this layer knows no thread pool.
#pragma once

#include <atomic>
#include <cstdint>

namespace xformers::cpu {

// Runs body(context, worker) for worker = 0 ... num_workers - 1, concurrently or not, and returns when all are done;
// then throws what the first body that threw has thrown.
using RunWorkers = void (*)(int num_workers, void (*body)(void* context, int worker), void* context);

struct Threads {
  int num_threads = 1;
  RunWorkers run = nullptr;  // null: run_std_threads
};

// The hardware's thread count, on plain std::threads: for callers without a pool of their own.
Threads default_threads();
void run_std_threads(int num_workers, void (*body)(void* context, int worker), void* context);

// Calls fn(task, worker) for every task in [0, num_tasks). Workers take the next task when free, so uneven tasks
// balance; a task must not depend on which worker runs it. Where fn throws, its worker stops, and the caller gets the
// exception once the others are done.
template <class Fn>
void for_each_task(const Threads& threads, int64_t num_tasks, const Fn& fn) {
  const int num_workers = static_cast<int>(num_tasks < threads.num_threads ? num_tasks : threads.num_threads);
  if (num_workers <= 1) {
    for (int64_t task = 0; task < num_tasks; ++task) fn(task, 0);
    return;
  }
  struct Context {
    const Fn& fn;
    int64_t num_tasks;
    std::atomic<int64_t> next{0};
  } context{fn, num_tasks};
  const auto body = [](void* opaque, int worker) {
    auto& c = *static_cast<Context*>(opaque);
    for (int64_t task; (task = c.next.fetch_add(1, std::memory_order_relaxed)) < c.num_tasks;) c.fn(task, worker);
  };
  (threads.run ? threads.run : run_std_threads)(num_workers, body, &context);
}

}  // namespace xformers::cpu
