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
    using A = AttentionArgs;
    return std::tuple{arg("query", &A::query),
                      arg("key", &A::key),
                      arg("value", &A::value),
                      arg("attn_bias", &A::attn_bias),
                      arg("window_left", &A::window_left),
                      arg("window_right", &A::window_right),
                      arg("bottom_right", &A::bottom_right),
                      arg("cu_seqlens_q", &A::cu_seqlens_q),
                      arg("cu_seqlens_k", &A::cu_seqlens_k),
                      arg("seqused_k", &A::seqused_k),
                      arg("p", &A::p),
                      arg("page_table", &A::page_table),
                      arg("page_size", &A::page_size),
                      arg("k_scale_shift", &A::k_scale_shift),
                      arg("v_scale_shift", &A::v_scale_shift)};
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
