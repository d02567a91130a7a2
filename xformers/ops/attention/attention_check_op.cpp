// The checks of attention_forward alone, for callers that say first what is wrong with a call and then who could run
// it.
#include "xformers/ops/attention/attention_check.h"
#include "xformers/ops/common/stack.h"

namespace xformers::ops {
namespace {

struct AttentionCheckInputs : AttentionArgs {
  static constexpr const char* kName = "attention_check_inputs";
  using Result = void;

  static constexpr auto arguments() {
    return std::tuple_cat(operands(), visibility(), std::tuple{arg("p", &AttentionArgs::p)}, pages(), quantization(),
                          modifiers(), blocks());
  }
  void empty() const = delete;  // decided by what it calls
};

void check_inputs_of(const AttentionCheckInputs& args) {
  check_problem(args);
  if (args.query.is_cpu() && is_eager(args.query)) check_offsets(args);
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) { xformers::ops::define<xformers::ops::AttentionCheckInputs>(m); }

TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  xformers::ops::implement<xformers::ops::check_inputs_of>(m);
}
