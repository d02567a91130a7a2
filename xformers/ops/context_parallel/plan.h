// Attention over a sequence that is spread over ranks, as data: who owns which tokens, which keys each rank is sent,
// and which pieces of the score matrix it computes. A pure function of the problem, the same on every rank; without
// torch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace xformers::parallel {

struct Range {
  int64_t begin = 0, end = 0;  // of the whole sequence
  int64_t size() const { return end - begin; }
  friend bool operator==(const Range&, const Range&) = default;
};

enum class Layout : int64_t {
  kContiguous,  // one chunk per rank
  kZigzag,      // 2 ranks chunks, rank r holds r and 2 ranks - 1 - r: causal work balances
  kDocuments,   // pieces of documents, assigned so that visible areas balance
};

struct ContextProblem {
  int64_t seqlen = 0, ranks = 1;
  // Query i sees key j iff both are of one document and i - window_left <= j <= i + window_right; -1 lifts a side.
  int64_t window_left = -1, window_right = -1;
  Layout layout = Layout::kContiguous;
  std::vector<int64_t> documents{};  // where each begins, and seqlen; empty: one

  std::vector<int64_t> flat() const;  // all of it as numbers, and back
  static ContextProblem from_flat(const std::vector<int64_t>& numbers);
  friend bool operator==(const ContextProblem&, const ContextProblem&) = default;
};

// One call of attention: neighbouring queries of one document, the keys that any of them sees, and the band in it.
struct Piece {
  Range queries, keys;
  int64_t window_left = -1, window_right = -1;  // from the bottom-right diagonal
  int64_t area = 0;                             // visible (query, key) pairs
};

struct RankPlan {
  std::vector<Range> owned;   // in the order of local rows
  std::vector<Piece> pieces;  // in the same order; together all of them
  std::vector<Range> needed;  // keys that are visible here, rising and apart: the rows that this rank is sent
  int64_t tokens() const;
  int64_t area() const;
};

struct ContextPlan {
  ContextProblem problem;
  std::vector<RankPlan> ranks;

  // Rows that rank `from` sends to rank `to` (from == to: keeps), in the order of its local rows.
  std::vector<Range> sent(int64_t from, int64_t to) const;
  int64_t rows_received(int64_t rank) const;  // from other ranks
  std::string text() const;                   // a line per rank
};

ContextPlan plan_context(const ContextProblem& problem);

// The layout whose most loaded rank has the least visible area; of equal ones the first.
Layout best_layout(ContextProblem problem);

}  // namespace xformers::parallel
