#include "xformers/ops/attention/attn_bias/packed_tensors.h"

#include <ATen/ops/cat.h>

#include <algorithm>

#include "xformers/ops/attention/attn_bias/bias_error.h"

namespace xformers::ops {
namespace {

// Whether both lists have tensors of the same sizes, as far as the first `dims` of them.
bool same_sizes(at::TensorList a, at::TensorList b, size_t dims) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](const at::Tensor& x, const at::Tensor& y) {
    return x.sym_sizes().slice(0, dims) == y.sym_sizes().slice(0, dims);
  });
}

void check_list(at::TensorList tensors) {
  if (tensors.empty()) bias_error("the list of tensors is empty", "at least one", "pass [batch, seqlen, ...]");
  for (const at::Tensor& t : tensors) {
    if (t.dim() >= 2) continue;
    bias_error("a tensor has shape " + c10::str(t.sym_sizes()), "[batch, seqlen, ...]", "add dimensions");
  }
}

}  // namespace

at::Tensor concatenate_sequences(at::TensorList tensors) {
  check_list(tensors);
  std::vector<at::Tensor> rows;
  for (const at::Tensor& t : tensors) {
    c10::SymDimVector sizes(t.sym_sizes());
    sizes[1] *= sizes[0];
    sizes[0] = 1;
    rows.push_back(t.reshape_symint(sizes));
  }
  return at::cat(rows, 1);
}

std::vector<int64_t> batch_sizes_of(at::TensorList tensors) {
  std::vector<int64_t> batch_sizes;
  for (const at::Tensor& t : tensors) batch_sizes.push_back(t.size(0));
  return batch_sizes;
}

std::vector<int64_t> seqlens_of(at::TensorList tensors) {
  std::vector<int64_t> seqlens;
  for (const at::Tensor& t : tensors) seqlens.insert(seqlens.end(), t.size(0), t.size(1));
  return seqlens;
}

void check_lists(at::TensorList queries, at::TensorList keys, at::TensorList values) {
  check_list(queries);
  check_list(keys);
  if (!same_sizes(queries, keys, 1)) {
    const auto text = [](at::TensorList tensors) { return c10::str(at::IntArrayRef(batch_sizes_of(tensors))); };
    bias_error("the queries' batch sizes are " + text(queries) + ", the keys' " + text(keys), "the same",
               "give one key tensor per query tensor, with its batch size");
  }
  if (values.empty()) return;
  check_list(values);
  if (!same_sizes(keys, values, 2)) {
    bias_error("keys and values differ in batch size or length", "the same",
               "give one value tensor per key tensor, with its first two sizes");
  }
}

}  // namespace xformers::ops
