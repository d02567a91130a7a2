#include "xformers/nn/functional/ragged.h"

#include <ATen/ops/matmul.h>
#include <ATen/ops/pad.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>

#include "xformers/ops/attention/attention.h"
#include "xformers/ops/common/check.h"

namespace xformers::nn::functional {
namespace {

void check_lengths(const ops::Check& check, const char* name, const at::Tensor& x, at::IntArrayRef lengths) {
  const int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  if (lengths.empty() || std::any_of(lengths.begin(), lengths.end(), [](int64_t n) { return n < 0; })) {
    check.fail(name, "without sequences, or with negative lengths", "one length of 0 or more per sequence",
               "give the number of tokens of each sequence");
  }
  check.equal(name, x.sym_size(0), total, "the lengths add up to the tokens");
}

int64_t longest(at::IntArrayRef lengths) { return *std::max_element(lengths.begin(), lengths.end()); }

// t [rows, columns] with zeros below and to the right.
at::Tensor padded(const at::Tensor& t, int64_t rows, int64_t columns) {
  return at::pad(t, {0, columns - t.size(1), 0, rows - t.size(0)});
}

}  // namespace

at::Tensor ragged_to_padded(const at::Tensor& x, at::IntArrayRef lengths) {
  const ops::Check check("ragged_to_padded");
  check.dims("x", x, 2, "[sum of lengths, dim]");
  check_lengths(check, "x.tokens", x, lengths);
  std::vector<at::Tensor> sequences = x.split_with_sizes(lengths);
  for (at::Tensor& t : sequences) t = padded(t, longest(lengths), x.size(1));
  return at::stack(sequences);
}

at::Tensor ragged_scores(const at::Tensor& query, const at::Tensor& key, at::IntArrayRef lengths_q,
                         at::IntArrayRef lengths_k) {
  const ops::Check check("ragged_scores");
  check.dims("query", query, 2, "[sum of lengths_q, dim]");
  check.dims("key", key, 2, "[sum of lengths_k, dim]");
  check.equal("key.dim", key.sym_size(1), query.sym_size(1), "queries and keys have the same features");
  check_lengths(check, "query.tokens", query, lengths_q);
  check_lengths(check, "key.tokens", key, lengths_k);
  check.equal("lengths_k", static_cast<int64_t>(lengths_k.size()), static_cast<int64_t>(lengths_q.size()),
              "each sequence has queries and keys");
  const std::vector<at::Tensor> q = query.split_with_sizes(lengths_q), k = key.split_with_sizes(lengths_k);
  std::vector<at::Tensor> scores;
  for (size_t i = 0; i < q.size(); ++i) {
    scores.push_back(padded(at::matmul(q[i], k[i].t()), longest(lengths_q), longest(lengths_k)));
  }
  return at::stack(scores);
}

at::Tensor ragged_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, at::IntArrayRef lengths_q,
                            at::IntArrayRef lengths_k, bool causal) {
  const ops::Check check("ragged_attention");
  check_lengths(check, "q.tokens", q, lengths_q);
  check_lengths(check, "k.tokens", k, lengths_k);
  const auto blocks = ops::BlockDiagonalMask::from_seqlens(lengths_q, lengths_k, q.device());
  const auto run = [&](const ops::AttentionBias& bias) {
    return ops::memory_efficient_attention(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), bias).squeeze(0);
  };
  return causal ? run(blocks.make_causal_from_bottomright()) : run(blocks);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> ragged_block_table(at::IntArrayRef lengths_q,
                                                                                          at::IntArrayRef lengths_k,
                                                                                          int64_t block_q,
                                                                                          int64_t block_k) {
  const ops::Check check("ragged_block_table");
  if (lengths_q.size() != lengths_k.size()) {
    check.fail("lengths_k", std::to_string(lengths_k.size()) + " sequences", std::to_string(lengths_q.size()),
               "each sequence has queries and keys");
  }
  if (block_q < 1 || block_k < 1) {
    check.fail("block", std::to_string(block_q) + " x " + std::to_string(block_k), "at least 1 x 1",
               "16 x 128 is usual");
  }
  std::vector<int64_t> offsets_q, offsets_k, rows, columns, sequences;
  int64_t first_q = 0, first_k = 0;
  for (size_t i = 0; i < lengths_q.size(); ++i) {
    for (int64_t row = 0; row * block_q < lengths_q[i]; ++row) {
      for (int64_t column = 0; column * block_k < lengths_k[i]; ++column) {
        offsets_q.push_back(first_q + row * block_q);
        offsets_k.push_back(first_k + column * block_k);
        rows.push_back(row);
        columns.push_back(column);
        sequences.push_back(static_cast<int64_t>(i));
      }
    }
    first_q += lengths_q[i];
    first_k += lengths_k[i];
  }
  const auto tensor = [](const std::vector<int64_t>& values) { return at::tensor(values, at::kLong); };
  return {tensor(offsets_q), tensor(offsets_k), tensor(rows), tensor(columns), tensor(sequences)};
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::nn::functional;
  m.def("ragged_to_padded(Tensor x, int[] lengths) -> Tensor", ragged_to_padded);
  m.def("ragged_scores(Tensor query, Tensor key_, int[] lengths_q, int[] lengths_k) -> Tensor", ragged_scores);
  m.def("ragged_attention(Tensor q, Tensor k, Tensor v, int[] lengths_q, int[] lengths_k, bool causal=False) -> Tensor",
        ragged_attention);
  m.def(
      "ragged_block_table(int[] lengths_q, int[] lengths_k, int block_q, int block_k) -> "
      "(Tensor offsets_q, Tensor offsets_k, Tensor rows, Tensor columns, Tensor sequences)",
      ragged_block_table);
}
