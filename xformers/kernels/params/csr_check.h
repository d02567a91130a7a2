// Whether a pattern of compressed sparse rows stays inside of its matrix. Looks at it: on the host.
#pragma once

#include <string>

#include "xformers/kernels/base/check.h"
#include "xformers/kernels/params/csr.h"

namespace xformers {

namespace csr_check {

// Whether all of list[0 ... count) lie in [0, end), in one pass that compilers vectorise.
inline bool all_below(const int32_t* list, int64_t count, int64_t end) {
  uint32_t highest = 0;  // a negative number is a high one
  for (int64_t i = 0; i < count; ++i) {
    const auto value = static_cast<uint32_t>(list[i]);
    highest = value > highest ? value : highest;
  }
  return count == 0 || static_cast<int64_t>(highest) < end;
}

inline std::string sentence(const char* where, const char* list, int64_t i, int64_t got, const std::string& expected,
                            const char* fix) {
  return to_text({.where = where,
                  .name = std::string(list) + "[" + std::to_string(i) + "]",
                  .got = std::to_string(got),
                  .expected = expected,
                  .fix = fix});
}

}  // namespace csr_check

// The sentence about the first offset that is wrong; "" where none is.
inline std::string offsets_objection(const char* where, const CsrPattern& p) {
  const int32_t* offsets = p.row_offsets;
  const char* const fix = "offsets ascend from 0 to the number of values";
  if (offsets[0] != 0) return csr_check::sentence(where, "row_offsets", 0, offsets[0], "0", fix);
  for (int64_t r = 0; r < p.rows; ++r) {
    if (offsets[r + 1] >= offsets[r]) continue;
    return csr_check::sentence(where, "row_offsets", r + 1, offsets[r + 1],
                               "at least " + std::to_string(offsets[r]) + ", the one before", fix);
  }
  if (offsets[p.rows] == p.nnz) return "";
  return csr_check::sentence(where, "row_offsets", p.rows, offsets[p.rows], std::to_string(p.nnz), fix);
}

// The same of a list of `count` numbers in [0, end).
inline std::string list_objection(const char* where, const char* name, const int32_t* list, int64_t count, int64_t end,
                                  const char* fix) {
  if (csr_check::all_below(list, count, end)) return "";
  int64_t i = 0;
  while (list[i] >= 0 && list[i] < end) ++i;
  return csr_check::sentence(where, name, i, list[i], "0 <= index < " + std::to_string(end), fix);
}

// The same of offsets and columns.
inline std::string pattern_objection(const char* where, const CsrPattern& p) {
  std::string text = offsets_objection(where, p);
  if (!text.empty()) return text;
  return list_objection(where, "column_indices", p.column_indices, p.nnz, p.columns, "they number the columns");
}

}  // namespace xformers
