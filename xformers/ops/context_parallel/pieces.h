// Pieces of a score matrix: neighbouring rows with neighbouring keys, under one band. Each is a call of attention.
#pragma once

#include <vector>

#include "xformers/ops/context_parallel/runs.h"

namespace xformers::parallel {

// Query i sees key j iff both are of one document and i - left <= j <= i + right; places in the whole sequence.
struct Visibility {
  int64_t left = 0, right = 0;     // 0 or more
  std::vector<int64_t> documents;  // where each begins, and the end of the last
};

struct Piece {
  Range rows, keys;                             // of the queries and of the keys that the piece was made from
  int64_t window_left = -1, window_right = -1;  // from the piece's bottom-right diagonal; -1: all keys on that side
  int64_t area = 0;                             // visible (query, key) pairs
  bool is_full() const { return window_left < 0 && window_right < 0; }
};

// The pieces of the visible part of queries x keys; rows of each are counted one run after another. All runs have one
// stride, so that a band of the whole is one of the piece. Every row of a piece sees a key of it, every key is seen.
std::vector<Piece> visible_pieces(const Visibility& visibility, const std::vector<Run>& queries,
                                  const std::vector<Run>& keys);

}  // namespace xformers::parallel
