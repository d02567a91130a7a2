#include "xformers/kernels/cuda/attention/attention_cuda.h"

#include <algorithm>

#include "xformers/kernels/cuda/attention/arguments.h"
#include "xformers/kernels/cuda/attention/kernels.h"
#include "xformers/kernels/cuda/attention/uncovered.h"
#include "xformers/kernels/params/attention_check.h"
#include "xformers/kernels/params/sequence.h"

namespace xformers::cuda {
namespace {

thread_local std::string_view last_forward, last_backward;

// Beside what every device refuses: the kernels count rows and keys of a sequence in 32 bits.
void check_lengths(const AttentionShape& shape, const SeqLayout& seq) {
  constexpr int64_t kMost = kMaxSeqlenOf<int>;
  const int64_t rows = shape.seqlen_q * std::max<int64_t>(shape.heads_per_group, 1),
                keys = seq.paged() ? seq.pages.max_pages * seq.pages.page_size : shape.seqlen_k;
  if (rows >= kMost || keys >= kMost) {
    throw Error(
        "attention: a sequence has 2^30 queries x heads of a group, or keys, or more, expected fewer.  Fix: cut it");
  }
}

bool has_rows(const AttentionShape& shape) { return shape.batch > 0 && shape.num_heads() > 0; }

// Queries and keys of no sequence come out empty, whatever the kernel: its tiles would read offsets that aren't there.
bool has_sequences(const SeqLayout& seq) { return !seq.packed() || seq.num_sequences > 0; }

// plan(kernel, facts, reasons): what the kernel has settled, or nothing and why.
std::optional<ForwardPlan> plan_of(const ForwardKernel& kernel, const AttentionFwdParams& params, const FwdFacts& facts,
                                   Reasons& reasons) {
  require(facts, kernel.features, reasons);
  return kernel.plan(params, facts, kernel.features, reasons);
}
std::optional<BackwardPlan> plan_of(const BackwardKernel& kernel, const AttentionBwdParams& params,
                                    const BwdFacts& facts, Reasons& reasons) {
  return kernel.plan(params, facts, reasons);
}

template <class Choice, class List, class Params>
Choice choose_from(const List& list, const Params& params) {
  check(params);
  check_lengths(params.shape, params.seq);
  const auto facts = facts_of(params);
  auto chosen = choose("attention: no CUDA kernel", list,
                       [&](const auto& kernel, Reasons& reasons) { return plan_of(kernel, params, facts, reasons); });
  return {chosen.kernel, facts, chosen.plan, has_rows(params.shape) ? chosen.plan.workspace : 0};
}

template <class List, class Params>
std::vector<std::string> reasons_against(const List& list, std::string_view name, const Params& params) {
  const auto facts = facts_of(params);
  return reasons_of(list, name, [&](const auto& kernel, Reasons& reasons) { plan_of(kernel, params, facts, reasons); });
}

}  // namespace

ForwardChoice choose_forward(const AttentionFwdParams& params) {
  return choose_from<ForwardChoice>(forward_list(), params);
}
BackwardChoice choose_backward(const AttentionBwdParams& params) {
  return choose_from<BackwardChoice>(backward_list(), params);
}

void attention_forward(const ForwardChoice& choice, const AttentionFwdParams& params, const Stream& stream) {
  last_forward = choice.kernel.name;
  if (!has_rows(params.shape) || params.shape.seqlen_q == 0) return;
  if (!has_sequences(params.seq)) return clear_uncovered_results(params, to_stream(stream));
  choice.kernel.run(params, choice.facts, choice.plan, stream);
}

void attention_backward(const BackwardChoice& choice, const AttentionBwdParams& params, const Stream& stream) {
  last_backward = choice.kernel.name;
  if (!has_rows(params.shape)) return;
  if (!has_sequences(params.seq)) return clear_uncovered_gradients(params, to_stream(stream));
  choice.kernel.run(params, choice.facts, choice.plan, stream);
}

std::vector<std::string> forward_kernels() { return names(forward_list()); }
std::vector<std::string> backward_kernels() { return names(backward_list()); }
std::vector<std::string> why_not_forward(std::string_view kernel, const AttentionFwdParams& params) {
  return reasons_against(forward_list(), kernel, params);
}
std::vector<std::string> why_not_backward(std::string_view kernel, const AttentionBwdParams& params) {
  return reasons_against(backward_list(), kernel, params);
}
std::string_view last_forward_kernel() { return last_forward; }
std::string_view last_backward_kernel() { return last_backward; }

}  // namespace xformers::cuda
