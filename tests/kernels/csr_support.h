// Patterns of sparse rows for tests.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "xformers/kernels/params/csr.h"

namespace xformers::testing {

// Rows of these lengths, columns anywhere, also twice in a row.
struct TestPattern {
  std::vector<int32_t> offsets{0}, columns;
  int64_t num_columns;

  TestPattern(std::initializer_list<int> lengths, int64_t num_columns) : num_columns(num_columns) {
    uint32_t seed = 7;
    for (const int length : lengths) {
      for (int i = 0; i < length; ++i) {
        seed = seed * 1664525u + 1013904223u;
        columns.push_back(static_cast<int32_t>((seed >> 8) % static_cast<uint32_t>(num_columns)));
      }
      offsets.push_back(static_cast<int32_t>(columns.size()));
    }
  }
  int64_t rows() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t nnz() const { return static_cast<int64_t>(columns.size()); }
  CsrPattern params() const { return {rows(), num_columns, nnz(), offsets.data(), columns.data()}; }
};

// With rows that are empty, short, and longer than any kernel takes at once.
inline TestPattern mixed_pattern() { return TestPattern({0, 3, 17, 1, 0, 0, 2900, 64, 5, 0, 33}, 41); }

}  // namespace xformers::testing
