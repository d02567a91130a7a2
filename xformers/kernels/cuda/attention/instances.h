// The launchers that exist once per element type (and padded head_dim). CMake writes one unit for each row of the
// *_instances.inc files that is to be built, and lists those rows again in built_instances.h for the kernel list.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "xformers/kernels/cuda/attention/bwd_args.h"
#include "xformers/kernels/cuda/attention/features.h"
#include "xformers/kernels/cuda/attention/fwd_args.h"

namespace xformers::cuda {

using fp64 = double;
using fp32 = float;
using fp16 = __half;
using bf16 = __nv_bfloat16;

namespace sm80 {
template <class T, int kHeadDim>
void launch_forward(const FwdArgs& args, Features features, cudaStream_t stream);
template <class T, int kHeadDim>
void launch_backward(const BwdArgs& args, Features features, cudaStream_t stream);
}  // namespace sm80

namespace sm80_fp32 {
template <int kHeadDim>
void launch_forward(const FwdArgs& args, Features features, cudaStream_t stream);  // kPlain, or kScored for all else
template <int kHeadDim>
void launch_backward(const BwdArgs& args, Features features, cudaStream_t stream);
}  // namespace sm80_fp32

namespace decode {
template <class T, int kHeadDim>
void launch_decode(const FwdArgs& args, cudaStream_t stream);
}  // namespace decode

namespace simt {
template <class T>
void launch_forward(FwdArgs args, cudaStream_t stream);
template <class T>
void launch_backward(BwdArgs args, cudaStream_t stream);
}  // namespace simt

}  // namespace xformers::cuda
