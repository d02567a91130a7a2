// The launchers that exist once per element type and padded head dims, and the lists of those that this build has.
// CMake writes one unit for each row XFORMERS_INSTANCE(type, head_dim, head_dim_v) of a family's list that is to be
// built, and those rows again into cuda_instances/<family>.inc.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

#include "xformers/kernels/base/dispatch.h"
#include "xformers/kernels/base/kernel_list.h"
#include "xformers/kernels/cuda/attention/bwd_args.h"
#include "xformers/kernels/cuda/attention/features.h"
#include "xformers/kernels/cuda/attention/fwd_args.h"

namespace xformers::cuda {

using fp64 = double;
using fp32 = float;
using fp16 = __half;
using bf16 = __nv_bfloat16;

struct ForwardInstance {
  DType dtype;
  int head_dim, head_dim_v;  // padded
  void (*launch)(const FwdArgs& args, Features features, cudaStream_t stream);
};
struct BackwardInstance {
  DType dtype;
  int head_dim, head_dim_v;
  void (*launch)(const BwdArgs& args, Features features, cudaStream_t stream);
};

namespace sm80 {
template <class T, int kHeadDim>
void launch_forward(const FwdArgs& args, Features features, cudaStream_t stream);  // kPlain ... kGeneral
template <class T, int kHeadDim>
void launch_backward(const BwdArgs& args, Features features, cudaStream_t stream);
}  // namespace sm80

namespace sm90 {
template <class T, int kHeadDim, int kHeadDimV>
void launch_forward(const FwdArgs& args, Features features, cudaStream_t stream);  // plain
template <class T, int kHeadDim, int kHeadDimV>
void launch_forward_scored(const FwdArgs& args, Features features, cudaStream_t stream);
template <class T, int kHeadDim, int kHeadDimV>
void launch_forward_blocked(const FwdArgs& args, Features features, cudaStream_t stream);
template <class T, int kHeadDim, int kHeadDimV>
void launch_backward(const BwdArgs& args, Features features, cudaStream_t stream);  // kPlain
}  // namespace sm90

namespace sm80_fp32 {
template <int kHeadDim>
void launch_forward(const FwdArgs& args, Features features, cudaStream_t stream);  // with score operations, or without
template <int kHeadDim>
void launch_backward(const BwdArgs& args, Features features, cudaStream_t stream);
}  // namespace sm80_fp32

namespace decode {
template <class T, int kHeadDim>
void launch_decode(const FwdArgs& args, Features features, cudaStream_t stream);
}  // namespace decode

namespace simt {
template <class T>
void launch_forward(FwdArgs args, cudaStream_t stream);
template <class T>
void launch_backward(BwdArgs args, cudaStream_t stream);
}  // namespace simt

template <class T>
inline constexpr DType kDTypeOf = std::is_same_v<T, fp32>   ? DType::kFloat32
                                  : std::is_same_v<T, fp64> ? DType::kFloat64
                                  : std::is_same_v<T, bf16> ? DType::kBFloat16
                                                            : DType::kFloat16;

// The smallest of the `built` instances that holds both head dims, or null and why there is none. `dtypes` are those
// that the family is made for; smem_bytes(instance) must fit too.
template <class Instance, class SmemBytes>
const Instance* find_instance(const std::vector<Instance>& built, const AttentionShape& shape,
                              std::initializer_list<DType> dtypes, int smem_available, const SmemBytes& smem_bytes,
                              Reasons& reasons) {
  if (std::find(dtypes.begin(), dtypes.end(), shape.dtype) == dtypes.end()) {
    std::string expected;
    for (DType dtype : dtypes) expected += (expected.empty() ? "" : " or ") + std::string(name_of(dtype));
    reasons.add("dtype is ", name_of(shape.dtype), ", expected ", expected);
    return nullptr;
  }
  const Instance* best = nullptr;
  int most = 0;
  for (const Instance& each : built) {
    if (each.dtype != shape.dtype) continue;
    most = std::max(most, std::min(each.head_dim, each.head_dim_v));
    if (each.head_dim < shape.head_dim || each.head_dim_v < shape.head_dim_v) continue;
    if (!best || each.head_dim + each.head_dim_v < best->head_dim + best->head_dim_v) best = &each;
  }
  if (!best) {
    reasons.add("head_dim or head_dim_v is ", std::max(shape.head_dim, shape.head_dim_v), ", expected at most ", most,
                " (what was built)");
  } else if (const int bytes = smem_bytes(*best); bytes > smem_available) {
    reasons.add("it needs ", bytes, " bytes of shared memory, this GPU has ", smem_available);
  }
  return best;
}

}  // namespace xformers::cuda
