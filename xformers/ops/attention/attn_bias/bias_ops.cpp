// The rules of the biases as operators, for the Python classes: fields and factories are Python's; what may be in them,
// how keys are laid out, what `materialize` shows and every text are decided here. All are private to the package. They
// return tensors or nothing, as far as they can: compilers take such calls into a graph.
#include <c10/util/Exception.h>
#include <torch/library.h>

#include "xformers/kernels/base/error.h"
#include "xformers/ops/attention/attn_bias.h"
#include "xformers/ops/attention/attn_bias/packed_tensors.h"

namespace xformers::ops {
namespace {

at::Tensor materialize_lowered(at::IntArrayRef size, at::ScalarType dtype, at::Device device,
                               const std::optional<at::Tensor>& scores, int64_t window_left, int64_t window_right,
                               bool bottom_right, const std::optional<at::Tensor>& cu_seqlens_q,
                               const std::optional<at::Tensor>& cu_seqlens_k,
                               const std::optional<at::Tensor>& seqused_k, const std::optional<at::Tensor>& page_table,
                               int64_t page_size, std::optional<int64_t> total_keys) {
  const auto tensor = [](const std::optional<at::Tensor>& t) { return t.value_or(at::Tensor()); };
  return materialize({.scores = tensor(scores),
                      .window_left = window_left,
                      .window_right = window_right,
                      .bottom_right = bottom_right,
                      .cu_seqlens_q = tensor(cu_seqlens_q),
                      .cu_seqlens_k = tensor(cu_seqlens_k),
                      .seqused_k = tensor(seqused_k),
                      .page_table = tensor(page_table),
                      .page_size = page_size},
                     size, dtype, device, total_keys);
}

void check_count(int64_t num_queries, int64_t num_keys) { check_same_count(num_queries, num_keys); }

void check_window(int64_t window_size) { causal_window_band(window_size, /*bottom_right=*/false); }

// A window that leaves queries without keys has always been a RuntimeError in Python.
void check_packed(at::IntArrayRef seqstart_q, at::IntArrayRef seqstart_k, int64_t window_left, int64_t window_right,
                  bool bottom_right) {
  try {
    check_blocks(seqstart_q, seqstart_k, {window_left, window_right, bottom_right});
  } catch (const Error& error) {
    TORCH_CHECK(bottom_right || window_left < 0, error.what());
    throw;
  }
}

void check_paged_starts(at::IntArrayRef seqstarts, at::IntArrayRef seqlens, const at::Tensor& block_tables,
                        int64_t page_size, int64_t notional_padding) {
  starts_in_pages(seqstarts, seqlens, block_tables, page_size, notional_padding);
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  // In the order of the fields of a lowered bias.
  m.def(
      "_bias_materialize(int[] size, ScalarType dtype, Device device, Tensor? scores=None, int window_left=-1, "
      "int window_right=-1, bool bottom_right=False, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, "
      "Tensor? seqused_k=None, Tensor? page_table=None, int page_size=0, int? total_keys=None) -> Tensor",
      materialize_lowered);
  m.def("_bias_check_scores(Tensor scores, int num_sequences, int longest_q, int longest_k) -> ()", check_scores);
  m.def("_bias_split(Tensor x, SymInt[] seqstart, SymInt[] batch_sizes) -> Tensor[]", split_sequences);
  m.def("_bias_concatenate(Tensor[] tensors) -> Tensor", concatenate_sequences);
  m.def("_bias_share_keys(int[] seqstarts, int[] seqlens) -> bool", share_keys);
  m.def("_bias_check_lists(Tensor[] queries, Tensor[] keys, Tensor[] values) -> ()", check_lists);
  m.def("_bias_check_count(int num_queries, int num_keys) -> ()", check_count);
  m.def("_bias_check_lengths(int[] seqlens) -> ()", check_lengths);
  m.def("_bias_check_padded(int[] seqlens, int padding) -> ()", check_padded);
  m.def("_bias_check_gappy(int[] seqstarts, int[] seqlens, bool paged) -> ()", check_gappy);
  m.def("_bias_check_windows(int window_left, int window_right) -> ()", check_windows);
  m.def("_bias_check_window(int window_size) -> ()", check_window);
  m.def(
      "_bias_check_blocks(int[] seqstart_q, int[] seqstart_k, int window_left, int window_right, bool bottom_right) -> "
      "()",
      check_packed);
  m.def("_bias_check_tables(Tensor block_tables, int page_size, int[] ends) -> ()", check_block_tables);
  m.def(
      "_bias_check_paged_starts(int[] seqstarts, int[] seqlens, Tensor block_tables, int page_size, "
      "int notional_padding) -> ()",
      check_paged_starts);
}
