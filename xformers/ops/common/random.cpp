// xformers::draw_philox_state: the only operator that uses a random generator. Dropout takes its result as a tensor, so
// the operators that drop are deterministic and trace, replay and checkpoint like any other.
#include "xformers/ops/common/random.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/functorch/BatchedTensorImpl.h>
#include <ATen/functorch/DynamicLayer.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/random.h>
#include <ATen/ops/stack.h>

#include "xformers/ops/common/dropout.h"
#include "xformers/ops/common/operator.h"

namespace xformers::ops {
namespace {

// int64[2] on the device of `like`: seed and offset of a Philox stream (kernels/base/philox.h), drawn from `generator`
// or, without one, from the default generator of the device, which torch.manual_seed sets. On a GPU its own generator
// draws, in order with everything else on the stream: nothing waits, and each replay of a captured graph draws anew.
struct DrawPhiloxStateLike {
  static constexpr const char* kName = "draw_philox_state_like";
  static constexpr at::Tag kTag = at::Tag::nondeterministic_seeded;
  using Result = at::Tensor;
  at::Tensor like;
  std::optional<at::Generator> generator{};

  static constexpr auto arguments() {
    return std::tuple{arg("like", &DrawPhiloxStateLike::like),
                      arg("generator", &DrawPhiloxStateLike::generator).keyword()};
  }
  void check() const {}
  at::Tensor empty() const { return empty_result({2}, like.options()); }
};

at::Tensor draw_like(const DrawPhiloxStateLike& args) {
  const auto& [like, generator] = args;
  const bool on_cpu = generator ? generator->device().is_cpu() : like.is_cpu();
  if (!on_cpu) return at::empty({2}, like.options()).random_(generator);
  auto* source = at::get_generator_or_default<at::CPUGeneratorImpl>(generator, at::detail::getDefaultCPUGenerator());
  at::Tensor state = at::empty({2}, like.options().device(at::kCPU));
  auto* words = state.mutable_data_ptr<int64_t>();
  {
    const std::lock_guard<std::mutex> lock(source->mutex_);
    words[0] = static_cast<int64_t>(source->random64());
    words[1] = static_cast<int64_t>(source->random64());
  }
  return state.to(like.device());
}

// Under torch.vmap, as its `randomness` says: an error, a state for every example, or one for all.
at::Tensor draw_like_under_vmap(const DrawPhiloxStateLike& args) {
  namespace functorch = at::functorch;
  const c10::impl::ExcludeDispatchKeyGuard below(c10::DispatchKey::FuncTorchVmapMode);
  const std::optional<functorch::DynamicLayer> layer = functorch::maybeCurrentDynamicLayer();
  TORCH_INTERNAL_ASSERT(layer, "a vmap mode without its layer");
  TORCH_CHECK(layer->randomness() != functorch::RandomnessType::Error,
              "dropout: torch.vmap has randomness 'error' (its default), expected 'same' or 'different'.  Fix: "
              "torch.vmap(..., randomness='different') draws a mask for every example, 'same' one for all.");
  if (layer->randomness() == functorch::RandomnessType::Same) return call(args);
  std::vector<at::Tensor> states;
  for (int64_t i = 0, examples = layer->batchSize().expect_int(); i < examples; ++i) states.push_back(call(args));
  return functorch::makeBatched(at::stack(states), /*bdim=*/0, layer->layerId());
}

// Every draw gets a tensor of its own: compilers merge calls whose arguments are the same, and so would give two layers
// one mask, but never merge empty().
at::Tensor draw(std::optional<at::Device> device, std::optional<at::Generator> generator) {
  const at::Device where = device.value_or(generator ? generator->device() : at::Device(at::kCPU));
  return call(DrawPhiloxStateLike{at::empty({0}, at::TensorOptions().dtype(at::kLong).device(where)), generator});
}

}  // namespace

at::Tensor draw_philox_state(at::Device device) { return draw(device, std::nullopt); }

OptionalTensor draw_dropout_state(double p, at::Device device) {
  return draws(p) ? OptionalTensor(draw_philox_state(device)) : std::nullopt;
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def("draw_philox_state(*, Device? device=None, Generator? generator=None) -> Tensor",
        {at::Tag::nondeterministic_seeded, at::Tag::pt2_compliant_tag});
  m.def("draw_dropout_state(float p, *, Device device) -> Tensor?",
        {at::Tag::nondeterministic_seeded, at::Tag::pt2_compliant_tag});
  xformers::ops::define<xformers::ops::DrawPhiloxStateLike>(m);
}

TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  m.impl("draw_philox_state", xformers::ops::draw);
  m.impl("draw_dropout_state", xformers::ops::draw_dropout_state);
}
TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) { xformers::ops::implement<xformers::ops::draw_like>(m); }
TORCH_LIBRARY_IMPL(xformers, FuncTorchVmapMode, m) {
  xformers::ops::implement<xformers::ops::draw_like_under_vmap>(m);
  m.impl("draw_philox_state", xformers::ops::draw);  // without a tensor these would leave the mode first
  m.impl("draw_dropout_state", xformers::ops::draw_dropout_state);
}
