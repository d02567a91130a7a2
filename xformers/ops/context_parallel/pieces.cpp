#include "xformers/ops/context_parallel/pieces.h"

#include <algorithm>
#include <optional>

namespace xformers::parallel {
namespace {

int64_t divide_down(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// Members of a run, and the row of the first.
struct RunPart {
  Run run;
  int64_t row = 0;
};

// sum over i < n of min(most, i + a)
int64_t sum_of_ends(int64_t n, int64_t a, int64_t most) {
  const int64_t rising = std::clamp<int64_t>(most - a, 0, n);
  return rising * a + rising * (rising - 1) / 2 + (n - rising) * most;
}

// sum over i < n of max(0, i - b)
int64_t sum_of_begins(int64_t n, int64_t b) {
  const int64_t first = std::clamp<int64_t>(b, 0, n), count = n - first;
  return count * (first + n - 1) / 2 - count * b;
}

// Member i of the queries sees member j of the keys iff -l <= j - i <= r.
std::optional<Piece> piece_of(const Visibility& visibility, const RunPart& q, const RunPart& k) {
  const int64_t stride = q.run.stride, between = k.run.begin - q.run.begin;
  const int64_t l = divide_down(visibility.left + between, stride);
  const int64_t r = divide_down(visibility.right - between, stride);
  if (l + r < 0) return std::nullopt;
  const int64_t j0 = std::max<int64_t>(0, -l), j1 = std::min(k.run.count, q.run.count + r);
  const int64_t i0 = std::max<int64_t>(0, j0 - r), i1 = std::min(q.run.count, j1 + l);
  if (j0 >= j1 || i0 >= i1) return std::nullopt;
  const int64_t rows = i1 - i0, keys = j1 - j0, down = l + j0 - i0, up = r - j0 + i0;
  Piece piece{{q.row + i0, q.row + i1}, {k.row + j0, k.row + j1}};
  piece.window_left = down + keys - rows;
  piece.window_right = up - (keys - rows);
  if (piece.window_left >= keys - 1) piece.window_left = -1;
  if (piece.window_right >= rows - 1) piece.window_right = -1;
  piece.area = sum_of_ends(rows, up + 1, keys) - sum_of_begins(rows, down);
  return piece;
}

// Two pieces that one call can do: a whole one beside one that its edge does not cut.
bool joined(Piece& last, const Piece& next) {
  const int64_t rows = next.rows.size(), keys = next.keys.size();
  if (last.rows == next.rows && last.keys.end == next.keys.begin) {
    if (last.is_full() && next.window_left < 0) {
      last.window_right = next.window_right;
    } else if (last.window_right < 0 && next.is_full()) {
      last.window_left = last.window_left < 0 ? -1 : last.window_left + keys;
    } else {
      return false;
    }
    last.keys.end = next.keys.end;
  } else if (last.keys == next.keys && last.rows.end == next.rows.begin && last.window_left < 0 && next.is_full()) {
    last.window_right = last.window_right < 0 ? -1 : last.window_right + rows;
    last.rows.end = next.rows.end;
  } else {
    return false;
  }
  last.area += next.area;
  return true;
}

}  // namespace

std::vector<Piece> visible_pieces(const Visibility& visibility, const std::vector<Run>& queries,
                                  const std::vector<Run>& keys) {
  const std::vector<int64_t>& starts = visibility.documents;
  std::vector<Piece> pieces;
  int64_t row = 0;
  for (const Run& run : queries) {
    if (run.count == 0) continue;
    auto document = std::upper_bound(starts.begin(), starts.end(), run.begin);
    for (; document != starts.end() && *(document - 1) <= run.token(run.count - 1); ++document) {
      const Range tokens{*(document - 1), *document}, members = run.within(tokens);
      if (members.begin >= members.end) continue;
      int64_t key_row = 0;
      for (const Run& of_keys : keys) {
        const Range seen = of_keys.within(tokens);
        if (seen.begin < seen.end) {
          const std::optional<Piece> piece = piece_of(visibility, {run.part(members), row + members.begin},
                                                      {of_keys.part(seen), key_row + seen.begin});
          if (piece && (pieces.empty() || !joined(pieces.back(), *piece))) pieces.push_back(*piece);
        }
        key_row += of_keys.count;
      }
    }
    row += run.count;
  }
  return pieces;
}

}  // namespace xformers::parallel
