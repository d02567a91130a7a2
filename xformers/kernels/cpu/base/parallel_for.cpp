#include "xformers/kernels/cpu/base/parallel_for.h"

#include <thread>
#include <vector>

namespace xformers::cpu {

Threads default_threads() {
  const unsigned count = std::thread::hardware_concurrency();
  return {count > 0 ? static_cast<int>(count) : 1, run_std_threads};
}

void run_std_threads(int num_workers, void (*body)(void* context, int worker), void* context) {
  std::vector<std::thread> helpers;
  for (int worker = 1; worker < num_workers; ++worker) helpers.emplace_back(body, context, worker);
  body(context, 0);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace xformers::cpu
