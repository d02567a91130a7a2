// The checks of attention_forward alone, for callers that say first what is wrong with a call and then who could run
// it.
#include <torch/library.h>

#include "xformers/ops/attention/attention_check.h"
#include "xformers/ops/common/stack.h"

namespace xformers::ops {
namespace {

using CheckInputs = Operator<AttentionArgs, void, &AttentionArgs::query, &AttentionArgs::key, &AttentionArgs::value,
                             &AttentionArgs::attn_bias, &AttentionArgs::window_left, &AttentionArgs::window_right,
                             &AttentionArgs::bottom_right, &AttentionArgs::cu_seqlens_q, &AttentionArgs::cu_seqlens_k,
                             &AttentionArgs::seqused_k, &AttentionArgs::p, &AttentionArgs::page_table,
                             &AttentionArgs::page_size, &AttentionArgs::k_scale_shift, &AttentionArgs::v_scale_shift>;

void check(const AttentionArgs& args) {
  check_problem(args);
  if (args.query.is_cpu() && is_eager(args.query)) check_offsets(args);
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  m.def(
      "attention_check_inputs(Tensor query, Tensor key, Tensor value, Tensor? attn_bias=None, SymInt window_left=-1, "
      "SymInt window_right=-1, bool bottom_right=False, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, "
      "Tensor? seqused_k=None, float p=0.0, Tensor? page_table=None, SymInt page_size=0, Tensor? k_scale_shift=None, "
      "Tensor? v_scale_shift=None) -> ()",
      CheckInputs::entry<check>);
}
