// Lists of the places of an index that point to one row. Plain C++.
#pragma once

#include <cstdint>

#include "xformers/kernels/cuda/base/stream.h"

namespace xformers::cuda {

struct PlaceIndex {
  const int64_t* index = nullptr;  // [count]
  int64_t count = 0, rows = 0;
  int64_t* head = nullptr;  // [rows], a place of the row or -1; nullptr: there are no lists
  int64_t* next = nullptr;  // [count], another place of the same row or -1
};

constexpr int64_t kSearchedPlaces = 512;  // an index up to here is searched

inline bool is_searched(int64_t count) { return count <= kSearchedPlaces; }
inline int64_t place_lists_bytes(int64_t count, int64_t rows) { return is_searched(count) ? 0 : 8 * (count + rows); }

// Makes the lists in `memory`, of place_lists_bytes, where there are to be some.
PlaceIndex make_place_lists(const int64_t* index, int64_t count, int64_t rows, void* memory, const Stream& where);

}  // namespace xformers::cuda
