// A matrix whose rows are contiguous; the stride, in elements, is that between rows.
#pragma once

#include <cstdint>

namespace xformers {

struct Rows {
  void* data = nullptr;  // [rows, width]
  int64_t stride = 0;
};

}  // namespace xformers
