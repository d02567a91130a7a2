// The rotary operators on CUDA tensors: on the current stream of the tensors' device, without waiting for it, so
// without looking at the offsets either. In the checked mode they are copied to the host and checked first.
#include "xformers/kernels/cuda/rope/rope_cuda.h"

#include <torch/library.h>

#include "xformers/kernels/params/rope_check.h"
#include "xformers/ops/common/cuda_call.h"
#include "xformers/ops/rope/rope_run.h"

namespace xformers::ops {
namespace {

void check_offsets_on_host(const RopeTensors& t) {
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

void run_cuda(const RopeTensors& t, const RopeSettings& settings, const at::Tensor& out_q) {
  check_offsets_on_host(t);
  CudaCall call(t.xq.device());
  run_rope_padded(t, settings, out_q, /*in_place=*/true,
                  [&](const RopePaddedParams& params) { cuda::rope_padded(params, call.stream()); });
}

at::Tensor rotary_cuda(const at::Tensor& x, double theta, bool adjacents, bool inverse) {
  CudaCall call(x.device());
  return run_rotary(x, theta, adjacents, inverse,
                    [&](const RotaryParams& params) { cuda::rotary(params, call.stream()); });
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CUDA, m) {
  m.impl("rope_padded", xformers::ops::rope_padded<xformers::ops::run_cuda>);
  m.impl("rope_padded_out", xformers::ops::rope_padded_out<xformers::ops::run_cuda>);
  m.impl("rotary", xformers::ops::rotary_cuda);
}
