#include "examples/microgpt/feed_forward.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <string_view>

#include "examples/microgpt/error.h"

namespace microgpt {
namespace {

using OptionalBias = const std::optional<at::Tensor>&;

// x W^T with W = sparsify24(weight).
at::Tensor sparse_linear(const at::Tensor& x, const at::Tensor& weight) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("xformers::sparse24_linear", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&, OptionalBias, std::string_view,
                                               std::string_view, std::string_view)>();
  return op.call(x, weight, std::nullopt, "largest_abs_values_greedy", "ste", "cutlass");
}

// sparsify24(gelu(z)) W^T. Of four tokens the first two keep one value in four, the others two.
at::Tensor activated_linear(const at::Tensor& z, const at::Tensor& weight) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("xformers::sparse24_activated_linear", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, OptionalBias, std::string_view, std::string_view)>();
  return op.call(z, weight, std::nullopt, "gelu", "causal1122");
}

// The operators are in libxformers, of which the program links the part with attention alone: that is built sooner.
void load_operators() {
  if (c10::Dispatcher::singleton().findSchema({"xformers::sparse24_linear", ""})) return;
  if (dlopen("libxformers.so", RTLD_NOW | RTLD_GLOBAL)) return;
  throw Error("--sparse24: cannot load the whole library (" + std::string(dlerror()) +
              ").  Fix: cmake --build build/release --target xformers");
}

}  // namespace

FeedForward::FeedForward(const std::string& name)
    : sparse_(static_cast<Sparse24>(std::ranges::find(kSparse24Names, name) - std::begin(kSparse24Names))) {
  if (sparse_ != Sparse24::kNone) load_operators();
}

at::Tensor FeedForward::operator()(const at::Tensor& x, const at::Tensor& up, const at::Tensor& down) const {
  switch (sparse_) {
    case Sparse24::kNone: return at::linear(at::gelu(at::linear(x, up), "tanh"), down);
    case Sparse24::kWeights: return sparse_linear(at::gelu(sparse_linear(x, up), "tanh"), down);
    case Sparse24::kActivations: return activated_linear(at::linear(x, up), down);
  }
  throw Error("--sparse24 is none of its names");
}

}  // namespace microgpt
