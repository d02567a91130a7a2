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

at::Tensor materialize_lowered(
    at::IntArrayRef size, at::ScalarType dtype, at::Device device, const std::optional<at::Tensor>& scores,
    int64_t window_left, int64_t window_right, bool bottom_right, const std::optional<at::Tensor>& cu_seqlens_q,
    const std::optional<at::Tensor>& cu_seqlens_k, const std::optional<at::Tensor>& seqused_k,
    const std::optional<at::Tensor>& page_table, int64_t page_size, const std::optional<at::Tensor>& block_key_offsets,
    const std::optional<at::Tensor>& block_keys, const std::optional<at::Tensor>& block_query_offsets,
    const std::optional<at::Tensor>& block_queries, const std::optional<at::Tensor>& block_bits_of,
    const std::optional<at::Tensor>& block_bits, int64_t block_q, int64_t block_k, std::optional<int64_t> total_keys) {
  const auto tensor = [](const std::optional<at::Tensor>& t) { return t.value_or(at::Tensor()); };
  return materialize({.scores = tensor(scores),
                      .window_left = window_left,
                      .window_right = window_right,
                      .bottom_right = bottom_right,
                      .cu_seqlens_q = tensor(cu_seqlens_q),
                      .cu_seqlens_k = tensor(cu_seqlens_k),
                      .seqused_k = tensor(seqused_k),
                      .page_table = tensor(page_table),
                      .page_size = page_size,
                      .blocks = {.key_offsets = tensor(block_key_offsets),
                                 .key_blocks = tensor(block_keys),
                                 .query_offsets = tensor(block_query_offsets),
                                 .query_blocks = tensor(block_queries),
                                 .bits_of = tensor(block_bits_of),
                                 .bits = tensor(block_bits),
                                 .block_q = block_q,
                                 .block_k = block_k}},
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

// Lists in the order of the operator's arguments; those of blocks that are seen in part may be undefined.
using ListTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
ListTensors to_tensors(const BlockLists& lists) {
  return {lists.key_offsets, lists.key_blocks, lists.query_offsets, lists.query_blocks, lists.bits_of, lists.bits};
}
ListTensors blocks_of_layout(const at::Tensor& layout, const std::optional<at::Tensor>& elements) {
  BlockLists lists = lists_of_layout(layout, elements.has_value());
  if (lists.bits_of.defined()) lists.bits = pack_block_bits(*elements);
  return to_tensors(lists);
}
ListTensors blocks_of_indices(const at::Tensor& indices, const std::optional<at::Tensor>& counts,
                              int64_t num_key_blocks) {
  return to_tensors(lists_of_indices(indices, counts.value_or(at::Tensor()), num_key_blocks));
}
ListTensors blocks_of_bsr(const at::Tensor& row_offsets, const at::Tensor& columns, int64_t num_key_blocks) {
  return to_tensors(lists_of_bsr(row_offsets, columns, num_key_blocks));
}
ListTensors blocks_of_mask(const at::Tensor& mask, int64_t block_q, int64_t block_k) {
  return to_tensors(lists_of_mask(mask, block_q, block_k));
}
BlockLists offsets_and_blocks(const at::Tensor& key_offsets, const at::Tensor& key_blocks,
                              const at::Tensor& query_offsets) {
  return {.key_offsets = key_offsets, .key_blocks = key_blocks, .query_offsets = query_offsets};
}
at::Tensor block_layout(const at::Tensor& key_offsets, const at::Tensor& key_blocks, const at::Tensor& query_offsets) {
  return layout_of(offsets_and_blocks(key_offsets, key_blocks, query_offsets));
}
at::Tensor block_density(const at::Tensor& key_offsets, const at::Tensor& key_blocks, const at::Tensor& query_offsets) {
  return density_of(offsets_and_blocks(key_offsets, key_blocks, query_offsets));
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
      "Tensor? seqused_k=None, Tensor? page_table=None, int page_size=0, Tensor? block_key_offsets=None, "
      "Tensor? block_keys=None, Tensor? block_query_offsets=None, Tensor? block_queries=None, "
      "Tensor? block_bits_of=None, Tensor? block_bits=None, int block_q=0, int block_k=0, int? total_keys=None) -> "
      "Tensor",
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
  // These read elements: compilers call them, and don't look inside.
  constexpr const char* kLists = ") -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)";
  m.def((std::string("_bias_blocks_of_layout(Tensor layout, Tensor? elements=None") + kLists).c_str());
  m.def((std::string("_bias_blocks_of_indices(Tensor indices, Tensor? counts, int num_key_blocks") + kLists).c_str());
  m.def((std::string("_bias_blocks_of_bsr(Tensor row_offsets, Tensor columns, int num_key_blocks") + kLists).c_str());
  m.def((std::string("_bias_blocks_of_mask(Tensor mask, int block_q, int block_k") + kLists).c_str());
  m.def("_bias_block_layout(Tensor key_offsets, Tensor key_blocks, Tensor query_offsets) -> Tensor");
  m.def("_bias_block_density(Tensor key_offsets, Tensor key_blocks, Tensor query_offsets) -> Tensor", block_density);
  m.def("_bias_check_block_size(int[] block_size) -> ()", check_block_size);
}

namespace xformers::ops {
namespace {

void implement_block_lists(torch::Library& m) {
  m.impl("_bias_blocks_of_layout", blocks_of_layout);
  m.impl("_bias_blocks_of_indices", blocks_of_indices);
  m.impl("_bias_blocks_of_bsr", blocks_of_bsr);
  m.impl("_bias_blocks_of_mask", blocks_of_mask);
  m.impl("_bias_block_layout", block_layout);
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) { xformers::ops::implement_block_lists(m); }
TORCH_LIBRARY_IMPL(xformers, CUDA, m) { xformers::ops::implement_block_lists(m); }  // which say that they can't
