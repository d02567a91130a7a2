// Whether row numbers lie inside a tensor. Looks at them: on the host.
#pragma once

#include <string>

#include "xformers/kernels/base/check.h"

namespace xformers {

// The sentence about the first that doesn't; "" where all do.
inline std::string index_objection(const char* where, const std::string& name, const int64_t* index, int64_t count,
                                   int64_t rows) {
  for (int64_t i = 0; i < count; ++i) {
    if (index[i] >= 0 && index[i] < rows) continue;
    return to_text({.where = where,
                    .name = name + "[" + std::to_string(i) + "]",
                    .got = std::to_string(index[i]),
                    .expected = "0 <= index < " + std::to_string(rows),
                    .fix = "pass row numbers; negative ones are not counted from the end"});
  }
  return "";
}

}  // namespace xformers
