#include "xformers/ops/common/cuda_call.h"

#include <torch/library.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <string>

#include "xformers/kernels/base/error.h"
#include "xformers/kernels/cuda/base/device.h"

namespace xformers::ops {

void require_kernels_for(c10::Device device) {
  static std::array<std::atomic<bool>, 64> known_to_work{};
  const auto index = static_cast<size_t>(device.index());
  if (index < known_to_work.size() && known_to_work[index].load(std::memory_order_relaxed)) return;
  if (const std::string reason = cuda::why_not_this_device(); !reason.empty()) {
    throw DeviceError("xformers: " + reason + ".  Fix: use CPU tensors, or a build, driver and GPU that fit.");
  }
  if (index < known_to_work.size()) known_to_work[index].store(true, std::memory_order_relaxed);
}

bool checks_indices() {
  const char* const wanted = std::getenv("XFORMERS_CHECK_INDICES");
  return wanted && wanted == std::string("1");
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def("why_not_cuda() -> str", [] { return xformers::cuda::why_not_this_device(); });  // "": kernels run here
}
