#include "xformers/ops/common/operator.h"

#include <ATen/ops/empty.h>

#include <charconv>
#include <iterator>

namespace xformers::ops {

// Schemas are made while the library is loaded: without streams and locales.
std::string default_text(double value) {
  char digits[32];
  const std::string text(digits, std::to_chars(std::begin(digits), std::end(digits), value).ptr);
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}

std::string default_text(std::string_view value) {
  std::string text = "'";
  text.append(value).append("'");
  return text;
}

// An argument has its default in the schema if all positional ones behind it have one too.
std::string join_arguments(std::vector<std::string> types, const std::vector<std::string>& names,
                           const std::vector<std::string>& defaults, const std::vector<bool>& keywords) {
  size_t first_default = names.size();
  for (size_t i = names.size(); i-- > 0 && (keywords[i] || !defaults[i].empty());) first_default = i;
  std::string text;
  bool by_name = false;
  for (size_t i = 0; i < names.size(); ++i) {
    if (i > 0) text += ", ";
    if (keywords[i] && !by_name) text += "*, ";
    by_name |= keywords[i];
    text += types[i] + " " + names[i];
    if (i >= first_default && !defaults[i].empty()) text += "=" + defaults[i];
  }
  return text;
}

at::Tensor empty_result(c10::SymIntArrayRef sizes, const at::TensorOptions& options, bool wanted) {
  return wanted ? at::empty_symint(sizes, options) : at::empty({0}, options);
}

}  // namespace xformers::ops
