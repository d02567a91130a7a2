// The rotary operators on CUDA tensors: on the current stream of the tensors' device, without waiting for it, so
// without looking at the offsets either. In the checked mode they are copied to the host and checked first.
#include "xformers/kernels/cuda/rope/rope_cuda.h"

#include "xformers/kernels/params/rope_check.h"
#include "xformers/ops/common/cuda_call.h"
#include "xformers/ops/rope/rope_run.h"

namespace xformers::ops {
namespace {

struct CudaRope {
  static constexpr bool kInPlace = true;
  static void check_values(const RopePadded& t) {
    if (!checks_indices()) return;
    const at::Tensor q_starts = t.q_seqstart.cpu().contiguous(), k_starts = t.k_seqstart.cpu().contiguous(),
                     k_lengths = t.k_seqlen.cpu().contiguous();
    RopePaddedParams params;
    params.num_queries = t.xq.size(1);
    params.num_keys = t.cache_k.size(1);
    params.batch = k_lengths.size(0);
    params.q_starts = q_starts.const_data_ptr<int32_t>();
    params.k_starts = k_starts.const_data_ptr<int32_t>();
    params.k_lengths = k_lengths.const_data_ptr<int32_t>();
    check_rope_sequences(params);
  }
  static void padded(const at::Tensor& x, const RopePaddedParams& params) {
    CudaCall call(x.device());
    cuda::rope_padded(params, call.stream());
  }
  static void rotary(const at::Tensor& x, const RotaryParams& params) {
    CudaCall call(x.device());
    cuda::rotary(params, call.stream());
  }
};

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) { xformers::ops::implement_rope<xformers::ops::CudaRope>(m); }
