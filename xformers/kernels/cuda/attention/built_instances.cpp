#include "xformers/kernels/cuda/attention/built_instances.h"

namespace xformers::cuda {
namespace {
template <class T>
constexpr DType kDTypeOf = std::is_same_v<T, fp32>   ? DType::kFloat32
                           : std::is_same_v<T, bf16> ? DType::kBFloat16
                                                     : DType::kFloat16;
}

// The included files are written by CMake: the rows of sm80/*_instances.inc and sm80_fp32/instances.inc that were
// asked for.
const std::vector<Instance<LaunchForward>>& built_forward() {
  static const std::vector<Instance<LaunchForward>> list = {
#define XFORMERS_INSTANCE(type, head_dim) {kDTypeOf<type>, head_dim, sm80::launch_forward<type, head_dim>},
#include "cuda_instances/fwd.inc"
#undef XFORMERS_INSTANCE
#define XFORMERS_INSTANCE(type, head_dim) {kDTypeOf<type>, head_dim, sm80_fp32::launch_forward<head_dim>},
#include "cuda_instances/fwd_sm80.inc"
#undef XFORMERS_INSTANCE
  };
  return list;
}

const std::vector<Instance<LaunchDecode>>& built_decode() {
  static const std::vector<Instance<LaunchDecode>> list = {
#define XFORMERS_INSTANCE(type, head_dim) {kDTypeOf<type>, head_dim, decode::launch_decode<type, head_dim>},
#include "cuda_instances/decode.inc"
#undef XFORMERS_INSTANCE
  };
  return list;
}

const std::vector<Instance<LaunchBackward>>& built_backward() {
  static const std::vector<Instance<LaunchBackward>> list = {
#define XFORMERS_INSTANCE(type, head_dim) {kDTypeOf<type>, head_dim, sm80::launch_backward<type, head_dim>},
#include "cuda_instances/bwd.inc"
#undef XFORMERS_INSTANCE
#define XFORMERS_INSTANCE(type, head_dim) {kDTypeOf<type>, head_dim, sm80_fp32::launch_backward<head_dim>},
#include "cuda_instances/bwd_sm80.inc"
#undef XFORMERS_INSTANCE
  };
  return list;
}

}  // namespace xformers::cuda
