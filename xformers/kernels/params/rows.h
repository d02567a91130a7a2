// A matrix whose rows are contiguous; the stride, in elements, is that between rows.
#pragma once

#include <cstdint>

#include "xformers/kernels/base/inline.h"

namespace xformers {

struct Rows {
  void* data = nullptr;  // [rows, width]
  int64_t stride = 0;
};

template <class T>
XFORMERS_INLINE T* row_at(const Rows& rows, int64_t row) {
  return static_cast<T*>(rows.data) + row * rows.stride;
}

}  // namespace xformers
