// Attention over a sequence that is spread over ranks, as data: who owns which tokens, which keys travel in which step,
// and which pieces of the score matrix are computed from them. A pure function of the problem, the same on every rank;
// without torch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "xformers/ops/context_parallel/pieces.h"

namespace xformers::parallel {

enum class Layout : int64_t {
  kContiguous,  // one chunk per team
  kZigzag,      // 2 teams chunks, team t holds t and 2 teams - 1 - t: causal work balances
  kDocuments,   // pieces of documents, assigned so that visible areas balance
  kStriped,     // tokens in turn: every band balances
};

enum class Method : int64_t {
  kAllGather,  // the keys that are visible to a team arrive at once
  kRing,       // those of one team after another: of the one d before in step d, while those of d - 1 are used
};

struct ContextProblem {
  int64_t seqlen = 0, ranks = 1;
  // Query i sees key j iff both are of one document and i - window_left <= j <= i + window_right; -1 lifts a side.
  int64_t window_left = -1, window_right = -1;
  Layout layout = Layout::kContiguous;
  std::vector<int64_t> documents{};  // where each begins, and seqlen; empty: one
  Method method = Method::kAllGather;
  // Ranks team_size t, ... are team t: together they hold its tokens, a part each, and share out its heads (Ulysses:
  // team_size = ranks). Between teams keys travel by `method`. A divisor of ranks.
  int64_t team_size = 1;

  int64_t teams() const { return ranks / team_size; }
  std::vector<int64_t> flat() const;  // all of it as numbers, and back
  static ContextProblem from_flat(const std::vector<int64_t>& numbers);
  friend bool operator==(const ContextProblem&, const ContextProblem&) = default;
};

struct Transfer {
  int64_t team = 0;
  std::vector<Range> rows;  // of whoever sends, rising
};

struct Placed {
  Range rows;  // of what has arrived, one transfer after another
  int64_t place = 0;
};

// Keys that arrive, and what is computed from them. In every step all teams exchange at once, so nobody waits in a
// circle; the steps of all teams are as many.
struct KeyStep {
  std::vector<Transfer> sends, arrivals;  // a team's own rows too, unless the step needs no others
  std::vector<Run> keys;                  // the tokens that have arrived, as they lie in memory
  std::vector<Placed> placed;             // how what arrives comes to lie so; empty: as it came
  std::vector<Piece> pieces;              // rows: those of the team; keys: rows of `keys`
  bool is_local = false;                  // the keys are those of the team, all of them, and nothing travels
};

struct TeamPlan {
  std::vector<Run> owned;  // in the order of local rows
  std::vector<KeyStep> steps;
  bool merges = false;  // some row is in two pieces: results are partial ones
  int64_t area() const;
  int64_t calls() const;
  int64_t rows_received(int64_t team) const;  // from other teams, of the plan of team `team`
};

class ContextPlan {
 public:
  explicit ContextPlan(ContextProblem problem);

  const ContextProblem problem;
  std::vector<std::vector<Run>> owned;  // by team

  TeamPlan team(int64_t team) const;
  // Local rows of a team that one of its ranks holds, and their tokens.
  Range rows_of(int64_t rank) const;
  std::vector<Run> tokens_of(int64_t rank) const;
  std::string text() const;  // a line per rank

 private:
  std::vector<Range> visible_rows(int64_t from, int64_t to) const;  // of `from`, to somebody in `to`
  KeyStep whole_step(int64_t team) const;
  KeyStep ring_step(int64_t team, int64_t distance) const;

  Visibility visibility_;
  std::vector<int64_t> distances_;  // of a ring: those at which any team sees keys
};

}  // namespace xformers::parallel
