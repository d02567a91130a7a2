#include "xformers/ops/context_parallel/plan.h"

#include <algorithm>
#include <numeric>

namespace xformers::parallel {
namespace {

constexpr int64_t kPiecesPerRank = 8;  // of the layout by documents: enough for areas to balance within a few percent

std::vector<Range> documents_of(const ContextProblem& problem) {
  if (problem.documents.empty()) return {{0, problem.seqlen}};
  std::vector<Range> documents;
  for (size_t i = 0; i + 1 < problem.documents.size(); ++i) {
    documents.push_back({problem.documents[i], problem.documents[i + 1]});
  }
  return documents;
}

Piece piece_of(const ContextProblem& problem, const Range& queries, const Range& document) {
  const auto& [left, right] = std::pair{problem.window_left, problem.window_right};
  Piece piece{queries, document};
  if (left >= 0) piece.keys.begin = std::max(document.begin, queries.begin - std::min(left, problem.seqlen));
  if (right >= 0) piece.keys.end = std::min(document.end, queries.end + std::min(right, problem.seqlen));
  // The diagonal i = j of the whole lies keys.end - queries.end before the bottom-right one of the piece.
  const int64_t beyond = piece.keys.end - queries.end;
  if (left >= 0) piece.window_left = std::min(left, problem.seqlen) + beyond;
  if (right >= 0) piece.window_right = std::max<int64_t>(0, std::min(right, problem.seqlen) - beyond);
  for (int64_t i = queries.begin; i < queries.end; ++i) {
    const int64_t first = left >= 0 ? std::max(document.begin, i - std::min(left, problem.seqlen)) : document.begin;
    const int64_t end = right >= 0 ? std::min(document.end, i + std::min(right, problem.seqlen) + 1) : document.end;
    piece.area += end - first;
  }
  return piece;
}

// Parts of a range that lie in one document each.
std::vector<Piece> pieces_of(const ContextProblem& problem, const std::vector<Range>& documents, const Range& range) {
  std::vector<Piece> pieces;
  for (const Range& document : documents) {
    const Range part{std::max(range.begin, document.begin), std::min(range.end, document.end)};
    if (part.begin < part.end) pieces.push_back(piece_of(problem, part, document));
  }
  return pieces;
}

std::vector<std::vector<Range>> chunks(const ContextProblem& problem, const std::vector<Range>& documents) {
  const int64_t ranks = problem.ranks, n = problem.seqlen;
  std::vector<std::vector<Range>> owned(ranks);
  const auto chunk = [&](int64_t i, int64_t count) { return Range{n * i / count, n * (i + 1) / count}; };
  if (problem.layout == Layout::kContiguous) {
    for (int64_t r = 0; r < ranks; ++r) owned[r] = {chunk(r, ranks)};
  } else if (problem.layout == Layout::kZigzag) {
    for (int64_t r = 0; r < ranks; ++r) owned[r] = {chunk(r, 2 * ranks), chunk(2 * ranks - 1 - r, 2 * ranks)};
  } else {
    const int64_t longest = std::max<int64_t>(1, (n + kPiecesPerRank * ranks - 1) / (kPiecesPerRank * ranks));
    std::vector<Piece> pieces;
    for (const Range& document : documents) {
      const int64_t parts = (document.size() + longest - 1) / longest;
      for (int64_t i = 0; i < parts; ++i) {
        pieces.push_back(piece_of(
            problem, {document.begin + document.size() * i / parts, document.begin + document.size() * (i + 1) / parts},
            document));
      }
    }
    std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.area > b.area; });
    std::vector<int64_t> area(ranks);
    for (const Piece& piece : pieces) {
      const auto least = std::min_element(area.begin(), area.end());
      *least += piece.area;
      owned[least - area.begin()].push_back(piece.queries);
    }
    for (auto& ranges : owned) {
      std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
    }
  }
  for (auto& ranges : owned) std::erase_if(ranges, [](const Range& range) { return range.size() == 0; });
  return owned;
}

std::vector<Range> united(const std::vector<Piece>& pieces) {
  std::vector<Range> ranges;
  for (const Piece& piece : pieces) ranges.push_back(piece.keys);
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  std::vector<Range> result;
  for (const Range& range : ranges) {
    if (!result.empty() && range.begin <= result.back().end) {
      result.back().end = std::max(result.back().end, range.end);
    } else {
      result.push_back(range);
    }
  }
  return result;
}

}  // namespace

std::vector<int64_t> ContextProblem::flat() const {
  std::vector<int64_t> numbers{seqlen, ranks, window_left, window_right, static_cast<int64_t>(layout)};
  numbers.insert(numbers.end(), documents.begin(), documents.end());
  return numbers;
}

ContextProblem ContextProblem::from_flat(const std::vector<int64_t>& numbers) {
  return {numbers.at(0),
          numbers.at(1),
          numbers.at(2),
          numbers.at(3),
          static_cast<Layout>(numbers.at(4)),
          {numbers.begin() + 5, numbers.end()}};
}

int64_t RankPlan::tokens() const {
  return std::accumulate(owned.begin(), owned.end(), int64_t{0},
                         [](int64_t n, const Range& r) { return n + r.size(); });
}

int64_t RankPlan::area() const {
  return std::accumulate(pieces.begin(), pieces.end(), int64_t{0},
                         [](int64_t n, const Piece& p) { return n + p.area; });
}

std::vector<Range> ContextPlan::sent(int64_t from, int64_t to) const {
  std::vector<Range> result;
  for (const Range& owned : ranks[from].owned) {
    for (const Range& needed : ranks[to].needed) {
      const Range both{std::max(owned.begin, needed.begin), std::min(owned.end, needed.end)};
      if (both.begin < both.end) result.push_back(both);
    }
  }
  return result;
}

int64_t ContextPlan::rows_received(int64_t rank) const {
  int64_t rows = 0;
  for (int64_t from = 0; from < problem.ranks; ++from) {
    if (from == rank) continue;
    for (const Range& range : sent(from, rank)) rows += range.size();
  }
  return rows;
}

std::string ContextPlan::text() const {
  std::string text;
  for (int64_t r = 0; r < problem.ranks; ++r) {
    text += "rank " + std::to_string(r) + ": tokens";
    for (const Range& range : ranks[r].owned)
      text += " " + std::to_string(range.begin) + "-" + std::to_string(range.end);
    text += ", " + std::to_string(ranks[r].pieces.size()) + " calls, visible area " + std::to_string(ranks[r].area()) +
            ", receives " + std::to_string(rows_received(r)) + " rows\n";
  }
  return text;
}

ContextPlan plan_context(const ContextProblem& problem) {
  const std::vector<Range> documents = documents_of(problem);
  ContextPlan plan{problem, {}};
  for (std::vector<Range>& owned : chunks(problem, documents)) {
    RankPlan rank{std::move(owned), {}, {}};
    for (const Range& range : rank.owned) {
      const std::vector<Piece> pieces = pieces_of(problem, documents, range);
      rank.pieces.insert(rank.pieces.end(), pieces.begin(), pieces.end());
    }
    rank.needed = united(rank.pieces);
    plan.ranks.push_back(std::move(rank));
  }
  return plan;
}

Layout best_layout(ContextProblem problem) {
  Layout best = Layout::kContiguous;
  int64_t least = -1;
  for (const Layout layout : {Layout::kContiguous, Layout::kZigzag, Layout::kDocuments}) {
    problem.layout = layout;
    int64_t most = 0;
    for (const RankPlan& rank : plan_context(problem).ranks) most = std::max(most, rank.area());
    if (least < 0 || most < least) least = most, best = layout;
  }
  return best;
}

}  // namespace xformers::parallel
