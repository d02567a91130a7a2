// The attention operators on CUDA tensors: on the current stream of the tensors' device, without waiting for it.
#include "xformers/kernels/cuda/attention/attention_cuda.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include "xformers/ops/attention/attention_params.h"

namespace xformers::ops {
namespace {

// The current stream, and scratch memory that the allocator may give away again once the stream has passed this call.
class CudaCall {
 public:
  CudaCall(c10::Device device, size_t workspace_bytes)
      : stream_(c10::impl::VirtualGuardImpl(device.type()).getStream(device)) {
    if (workspace_bytes > 0) {
      workspace_ = at::empty({static_cast<int64_t>(workspace_bytes)}, at::TensorOptions(device).dtype(at::kByte));
    }
  }
  cuda::Stream stream() const {
    return {.stream = stream_.native_handle(),
            .workspace = workspace_.defined() ? workspace_.mutable_data_ptr() : nullptr};
  }

 private:
  c10::Stream stream_;
  at::Tensor workspace_;
};

std::tuple<at::Tensor, at::Tensor> forward_cuda(const AttentionArgs& args) {
  const c10::DeviceGuard guard(args.query.device());
  return run_forward(args, [&](const AttentionFwdParams& params) {
    const CudaCall call(args.query.device(), cuda::forward_workspace(params));
    cuda::attention_forward(params, call.stream());
  });
}

AttentionGradients backward_cuda(const AttentionGradArgs& args) {
  const c10::DeviceGuard guard(args.query.device());
  return run_backward(args, [&](const AttentionBwdParams& given) {
    AttentionBwdParams params = given;
    params.deterministic = at::globalContext().deterministicAlgorithms();
    const CudaCall call(args.query.device(), cuda::backward_workspace(params));
    cuda::attention_backward(params, call.stream());
  });
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) {
  using namespace xformers::ops;
  m.impl("attention_forward", AttentionForward::entry<forward_cuda>);
  m.impl("attention_backward", AttentionBackward::entry<backward_cuda>);
}
