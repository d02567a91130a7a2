// Rows of quantised keys and values, in int32 words. int4: a word of coefficients per group, then 8 numbers a word;
// fp8: 4 numbers a word. Int: int64_t or a symbolic one.
#pragma once

namespace xformers {

template <class Int>
Int int4_groups(const Int& head_dim, const Int& words) {
  return words - head_dim / 8;
}

template <class Int>
bool int4_rows_fit(const Int& head_dim, const Int& groups) {
  return (groups == 1 || groups == 2 || groups == 4 || groups == 8) && head_dim % (groups * 8) == 0;
}

template <class Int>
bool fp8_rows_fit(const Int& head_dim) {
  return head_dim % 4 == 0;
}

}  // namespace xformers
