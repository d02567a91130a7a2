#include "xformers/ops/common/threads.h"

#include <ATen/Parallel.h>
#include <torch/csrc/stable/c/shim.h>

#include <exception>

namespace xformers::ops {
namespace {

// at::parallel_for is header code that runs serially unless this file is compiled with -fopenmp; the exported function
// torch_parallel_for is the same loop, compiled inside libtorch. Exceptions don't pass through it, so they go around.
void run_torch_threads(int num_workers, void (*body)(void* context, int worker), void* context) {
  struct Call {
    void (*body)(void* context, int worker);
    void* context;
    std::exception_ptr error = nullptr;
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
  } call{body, context};
  const auto run_range = [](int64_t begin, int64_t end, void* opaque) {
    auto& c = *static_cast<Call*>(opaque);
    try {
      for (int64_t worker = begin; worker < end; ++worker) c.body(c.context, static_cast<int>(worker));
    } catch (...) {
      if (!c.failed.test_and_set()) c.error = std::current_exception();
    }
  };
  torch_parallel_for(0, num_workers, 1, run_range, &call);
  if (call.error) std::rethrow_exception(call.error);
}

}  // namespace

cpu::Threads torch_threads() {
  return {.num_threads = at::in_parallel_region() ? 1 : at::get_num_threads(), .run = run_torch_threads};
}

}  // namespace xformers::ops
