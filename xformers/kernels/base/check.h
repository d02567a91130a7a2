// What every error of this library says: what came, what was expected, how to fix it.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "xformers/kernels/base/error.h"

namespace xformers {

// "<where>: <name> is <got>, expected <expected>.  Fix: <fix>."  An empty `where` or `fix` leaves its part out, as in
// the reasons of a kernel or an operator, which are put together to one error.
struct Sentence {
  std::string_view where, name, got, expected, fix;
};

inline std::string to_text(const Sentence& s) {
  std::string text;
  const auto append = [&](std::initializer_list<std::string_view> parts) {
    for (std::string_view part : parts) text += part;
  };
  if (!s.where.empty()) append({s.where, ": "});
  append({s.name, " is ", s.got, ", expected ", s.expected});
  if (!s.fix.empty()) append({".  Fix: ", s.fix, "."});
  return text;
}

[[noreturn]] inline void fail(const Sentence& sentence) { throw Error(to_text(sentence)); }

}  // namespace xformers
