// xformers::draw_philox_state: the only operator that uses a random generator. Dropout takes its result as a tensor, so
// the operators that drop are deterministic and trace, replay and checkpoint like any other.
#include "xformers/ops/common/random.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace xformers::ops {
namespace {

// int64[2] on the CPU: seed and offset of a Philox stream (kernels/base/philox.h), drawn from `generator` or, without
// one, from the default CPU generator, which torch.manual_seed sets.
at::Tensor draw(std::optional<at::Device> device, std::optional<at::Generator> generator) {
  const auto options = at::TensorOptions().dtype(at::kLong).device(device.value_or(at::kCPU));
  if (options.device().is_meta()) return at::empty({2}, options);
  auto* source = at::get_generator_or_default<at::CPUGeneratorImpl>(generator, at::detail::getDefaultCPUGenerator());
  at::Tensor state = at::empty({2}, options.device(at::kCPU));
  auto* words = state.mutable_data_ptr<int64_t>();
  {
    const std::lock_guard<std::mutex> lock(source->mutex_);
    words[0] = static_cast<int64_t>(source->random64());
    words[1] = static_cast<int64_t>(source->random64());
  }
  return state.to(options.device());
}

}  // namespace

at::Tensor draw_philox_state(at::Device device) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("xformers::draw_philox_state", "")
                             .typed<at::Tensor(std::optional<at::Device>, std::optional<at::Generator>)>();
  return op.call(device, at::detail::getDefaultCPUGenerator());
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def("draw_philox_state(*, Device? device=None, Generator? generator=None) -> Tensor",
        {at::Tag::nondeterministic_seeded, at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) { m.impl("draw_philox_state", xformers::ops::draw); }
