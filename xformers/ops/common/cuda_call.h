// What every operator on CUDA tensors needs around a kernel: the tensors' device made current, that device's current
// stream, and scratch memory. LibTorch alone: no CUDA header.
#pragma once

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "xformers/kernels/cuda/base/stream.h"

namespace xformers::ops {

// Throws, in one sentence, where no kernel runs on the device; asks once per device.
void require_kernels_for(c10::Device device);

// The checked mode: XFORMERS_CHECK_INDICES=1. Operators then copy indices and offsets to the host, and look at them.
bool checks_indices();

// Lives while a call enqueues its kernels. The allocator may give the workspace away again once the stream has passed.
class CudaCall {
 public:
  explicit CudaCall(c10::Device device)
      : guard_(device), stream_(c10::impl::VirtualGuardImpl(device.type()).getStream(device)) {
    require_kernels_for(device);
  }

  cuda::Stream stream(size_t workspace_bytes = 0) {
    if (workspace_bytes > 0) {
      workspace_ = at::empty({static_cast<int64_t>(workspace_bytes)},
                             at::TensorOptions(guard_.current_device()).dtype(at::kByte));
    }
    return {.stream = stream_.native_handle(),
            .workspace = workspace_.defined() ? workspace_.mutable_data_ptr() : nullptr};
  }

 private:
  c10::DeviceGuard guard_;
  c10::Stream stream_;
  at::Tensor workspace_;
};

}  // namespace xformers::ops
