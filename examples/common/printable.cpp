#include "examples/common/printable.h"

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>

namespace examples {
namespace {

// Length of the UTF-8 character that starts at `i`, 0 where there is none.
size_t utf8_length(const std::string& s, size_t i) {
  const auto byte = [&](size_t j) { return j < s.size() ? static_cast<uint8_t>(s[j]) : 0; };
  const uint8_t lead = byte(i);
  const size_t length = lead < 0x80                   ? 1
                        : lead >= 0xc2 && lead < 0xe0 ? 2
                        : lead >= 0xe0 && lead < 0xf0 ? 3
                        : lead >= 0xf0 && lead < 0xf5 ? 4
                                                      : 0;
  for (size_t j = 1; j < length; ++j) {
    if ((byte(i + j) & 0xc0) != 0x80) return 0;
  }
  // Overlong forms, surrogates, and beyond the last character.
  const uint8_t second = byte(i + 1);
  if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second >= 0xa0) || (lead == 0xf0 && second < 0x90) ||
      (lead == 0xf4 && second >= 0x90)) {
    return 0;
  }
  return length;
}

}  // namespace

std::string printable(const std::string& bytes) {
  std::string out;
  for (size_t i = 0; i < bytes.size();) {
    const size_t length = utf8_length(bytes, i);
    const auto byte = static_cast<uint8_t>(bytes[i]);
    const bool control = (byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7f;
    if (length == 0 || control) {
      out += fmt::format("\\x{:02x}", byte);
      ++i;
    } else {
      out.append(bytes, i, length);
      i += length;
    }
  }
  return out;
}

}  // namespace examples
