#include "xformers/kernels/cuda/attention/attention_cuda.h"

#include "xformers/kernels/cuda/attention/backward_kernels.h"
#include "xformers/kernels/cuda/attention/call_facts.h"
#include "xformers/kernels/cuda/attention/forward_kernels.h"
#include "xformers/kernels/cuda/attention/passes.h"
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

template <class Params>
Choice choose_from(const KernelList<Params>& list, const Params& params) {
  check(params);
  check_lengths(params.shape, params.seq);
  const Kernel<Params>& kernel = choose(list, params);
  return {.kernel = static_cast<int>(&kernel - list.data()),
          .workspace = has_rows(params.shape) ? kernel.workspace(params) : 0};
}

}  // namespace

Choice choose_forward(const AttentionFwdParams& params) { return choose_from(forward_list(), params); }
Choice choose_backward(const AttentionBwdParams& params) { return choose_from(backward_list(), params); }

void attention_forward(const Choice& choice, const AttentionFwdParams& params, const Stream& stream) {
  const auto& kernel = forward_list()[static_cast<size_t>(choice.kernel)];
  last_forward = kernel.name;
  if (has_rows(params.shape) && params.shape.seqlen_q > 0) kernel.run(params, stream);
}

void attention_backward(const Choice& choice, const AttentionBwdParams& params, const Stream& stream) {
  const auto& kernel = backward_list()[static_cast<size_t>(choice.kernel)];
  last_backward = kernel.name;
  if (has_rows(params.shape)) kernel.run(params, stream);
}

std::vector<std::string> forward_kernels() { return names(forward_list()); }
std::vector<std::string> backward_kernels() { return names(backward_list()); }
std::vector<std::string> why_not_forward(std::string_view kernel, const AttentionFwdParams& params) {
  return reasons_of(forward_list(), kernel, params);
}
std::vector<std::string> why_not_backward(std::string_view kernel, const AttentionBwdParams& params) {
  return reasons_of(backward_list(), kernel, params);
}
std::string_view last_forward_kernel() { return last_forward; }
std::string_view last_backward_kernel() { return last_backward; }

}  // namespace xformers::cuda
