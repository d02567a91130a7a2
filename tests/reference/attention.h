// Attention by the book, slow and plain: what the kernels are held against. It reads masks, packing and dropout from
// the contract in params/attention.h on its own and shares no code with the kernels, but for the definition of the
// dropout stream.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "xformers/kernels/base/dtype.h"

namespace xformers::reference {

using Values = std::vector<double>;

// One independent attention problem: the rows of one sequence.
struct Sequence {
  int64_t batch = 0, first_query = 0, num_queries = 0, first_key = 0, num_keys = 0;
  std::vector<int64_t> pages{};  // not empty: keys count from the start of pages[0]
  int64_t page_size = 0;

  int64_t key_row(int64_t key) const {
    const int64_t place = first_key + key;
    return pages.empty() ? place : pages[place / page_size] * page_size + place % page_size;
  }
};

struct AttentionProblem {
  int64_t batch = 0, seqlen_q = 0, seqlen_k = 0, heads = 0, head_dim = 0, head_dim_v = 0;
  Values q, k, v;  // [batch, seqlen, heads, head_dim or head_dim_v]; shared heads are written out
  Values bias;     // [sequences, heads, bias_rows, bias_cols] or empty; in dense layouts these are seqlen_q, seqlen_k
  int64_t bias_rows = 0, bias_cols = 0;
  bool one_bias = false, one_bias_head = false;  // dbias is one of all sequences, of all heads: a sum
  double softcap = 0;
  Values slopes, sinks;  // [sequences, heads] or empty
  Values dout;           // [batch, seqlen_q, heads, head_dim_v]
  Values dlse;           // [batch, heads, seqlen_q] or empty
  std::vector<Sequence> sequences;
  std::vector<char> shown;  // [batch, heads, seqlen_q, seqlen_k] or empty: what may be visible; of dense layouts
  std::optional<int64_t> window_left, window_right;
  bool bottom_right = false;
  double scale = 1;
  // Scores as kernels hold them, in float (double for fp64), where they may be so large that this is what counts. They
  // must be exact but for that last rounding, so that there is one right answer.
  bool held_scores = false;
  double dropout_p = 0;
  uint64_t philox_seed = 0, philox_offset = 0;

  bool visible(const Sequence& sequence, int64_t head, int64_t query, int64_t key) const;
  // Of ALiBi: from the diagonal of the band, or without a band from the bottom-right one.
  int64_t distance(const Sequence& sequence, int64_t query, int64_t key) const;
  // 1 / (1 - p) for kept scores, 0 for dropped ones; `index` is the sequence's place in `sequences`.
  double dropout_factor(int64_t index, int64_t head, int64_t query, int64_t key) const;
};

struct AttentionResult {
  Values out, lse;  // like q with head_dim_v; [batch, heads, seqlen_q]
  Values dq, dk, dv, dbias;
  Values dslopes, dsinks;  // [sequences, heads]
};

// The exact answer: in double, or in long double for fp64 problems, where double would be no better than the kernel.
AttentionResult exact(const AttentionProblem& problem, DType dtype);

// The plain formula as an eager program runs it in `dtype`: matrix by matrix, each rounded to dtype when stored, sums
// in fp32 (fp64 for fp64). Its error is the yardstick for the kernels' error.
AttentionResult plain(const AttentionProblem& problem, DType dtype);

// Per element, what one rounding at each step is worth: matrices are stored in dtype, weights too; scores, lse and sums
// are float (double for fp64). Errors of the terms of a sum are independent. Rounding a score or an lse of size x moves
// a weight by that unit times x, relatively.
AttentionResult roundings(const AttentionProblem& problem, DType dtype);

}  // namespace xformers::reference
