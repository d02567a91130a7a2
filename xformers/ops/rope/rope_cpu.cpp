// The rotary operators on CPU tensors.
#include "xformers/kernels/cpu/rope/rope_cpu.h"

#include "xformers/ops/common/threads.h"
#include "xformers/ops/rope/rope_run.h"

namespace xformers::ops {
namespace {

struct CpuRope {
  static constexpr bool kInPlace = false;
  static void check_values(const RopePadded&) {}  // the kernels do
  static void padded(const at::Tensor& /*x*/, const RopePaddedParams& params) {
    cpu::rope_padded(params, torch_threads());
  }
  static void rotary(const at::Tensor& /*x*/, const RotaryParams& params) { cpu::rotary(params, torch_threads()); }
};

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) { xformers::ops::implement_rope<xformers::ops::CpuRope>(m); }
