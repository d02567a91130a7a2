#include "xformers/profiler/cost.h"

#include <algorithm>
#include <charconv>
#include <unordered_map>

namespace xformers::profiler {
namespace {

// Calls body(item, index) for every item of "a, b, c", until it returns true.
template <class Body>
bool any_item(std::string_view list, Body body) {
  for (size_t index = 0; !list.empty(); ++index) {
    const size_t comma = list.find(',');
    std::string_view item = list.substr(0, comma);
    item.remove_prefix(std::min(item.find_first_not_of(' '), item.size()));
    if (body(item, index)) return true;
    list = comma == std::string_view::npos ? "" : list.substr(comma + 1);
  }
  return false;
}

const Shape kNone;

}  // namespace

int position_of(std::string_view arguments, std::string_view name) {
  int found = -1;
  any_item(arguments, [&](std::string_view item, size_t index) {
    if (item == name) found = static_cast<int>(index);
    return item == name;
  });
  return found;
}

const Argument* Call::find(std::string_view name) const {
  const int position = position_of(names_, name);
  return position >= 0 && position < static_cast<int>(arguments_.size()) ? &arguments_[static_cast<size_t>(position)]
                                                                         : nullptr;
}

const Shape& Call::shape(std::string_view name) const {
  const Argument* argument = find(name);
  return argument && !argument->shapes.empty() ? argument->shapes[0] : kNone;
}

std::string_view Call::type(std::string_view name) const {
  const Argument* argument = find(name);
  return argument ? std::string_view(argument->type) : "";
}

int64_t Call::integer(std::string_view name, int64_t otherwise) const {
  const Argument* argument = find(name);
  if (argument) std::from_chars(argument->value.data(), argument->value.data() + argument->value.size(), otherwise);
  return otherwise;
}

bool Call::flag(std::string_view name, bool otherwise) const {
  const Argument* argument = find(name);
  if (!argument || argument->value.empty()) return otherwise;
  return argument->value == "True" || argument->value == "true" || argument->value == "1";
}

std::vector<int64_t> Call::integers(std::string_view name) const {
  const Argument* argument = find(name);
  if (!argument || !argument->numbers.empty()) return argument ? argument->numbers : std::vector<int64_t>{};
  std::vector<int64_t> result;
  std::string_view text = argument->value;
  while (!text.empty()) {
    int64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error == std::errc()) result.push_back(number);
    text.remove_prefix(error == std::errc() ? end - text.data() : 1);
  }
  return result;
}

Cost cost_of(const CostRule& rule, const std::vector<Argument>& arguments) {
  return rule.cost(Call(rule.arguments, arguments));
}

const CostRule* find_cost_rule(std::string_view name) {
  static const auto rules = [] {
    std::unordered_map<std::string_view, const CostRule*> by_name;
    for (const CostRule* rule : cost_rules()) by_name.emplace(rule->name, rule);
    return by_name;
  }();
  const auto found = rules.find(name);
  return found == rules.end() ? nullptr : found->second;
}

int64_t element_bytes(std::string_view type) {
  struct Size {
    std::string_view name;
    int64_t bytes;
  };
  static constexpr Size kSizes[] = {{"float", 4},
                                    {"c10::BFloat16", 2},
                                    {"c10::Half", 2},
                                    {"double", 8},
                                    {"long", 8},
                                    {"long int", 8},
                                    {"int", 4},
                                    {"bool", 1},
                                    {"signed char", 1},
                                    {"unsigned char", 1},
                                    {"short", 2},
                                    {"short int", 2},
                                    {"c10::complex<float>", 8},
                                    {"c10::complex<double>", 16}};
  for (const Size& size : kSizes) {
    if (type == size.name) return size.bytes;
  }
  return type.starts_with("c10::Float8") ? 1 : 0;
}

int64_t count(const Shape& shape) {
  int64_t result = 1;
  for (int64_t size : shape) result *= size;
  return result;
}

int64_t rows(const Shape& shape) { return shape.empty() ? 1 : count(Shape(shape.begin(), shape.end() - 1)); }

int64_t bytes_of(const Argument& argument) {
  int64_t elements = 0;
  for (const Shape& shape : argument.shapes) elements += count(shape);
  return elements * element_bytes(argument.type);
}

int64_t bytes_of_inputs(const Call& call) {
  int64_t bytes = 0;
  for (const Argument& argument : call.arguments()) bytes += bytes_of(argument);
  return bytes;
}

Cost product_cost(int64_t m, int64_t k, int64_t n, std::string_view type) {
  return {2 * m * k * n, (m * k + k * n + m * n) * element_bytes(type), std::string(type)};
}

Cost memory_cost_of(const Call& call, std::string_view written) {
  Cost cost{0, bytes_of_inputs(call), ""};
  any_item(written, [&](std::string_view name, size_t) {
    if (const Argument* argument = call.find(name)) cost.bytes += bytes_of(*argument);
    return false;
  });
  for (const Argument& argument : call.arguments()) {
    if (!argument.shapes.empty() && cost.type.empty()) cost.type = argument.type;
  }
  return cost;
}

}  // namespace xformers::profiler
