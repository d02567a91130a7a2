// Options of modules by name, as configuration files and other languages give them. A struct of options lists its
// members, and is read from a map that may hold more than it knows:
//
//   struct FooOptions {
//     int64_t num_heads = 1;
//     std::optional<double> dropout{};
//     static constexpr auto fields() {
//       return std::tuple{field("num_heads", &FooOptions::num_heads), field("dropout", &FooOptions::dropout)};
//     }
//   };
//   read_options<FooOptions>({{"num_heads", 8}, {"dropout", 0.1}})
#pragma once

#include <ATen/core/ivalue.h>

#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace xformers::nn {

using OptionMap = std::map<std::string, c10::IValue>;  // None: as if it were not there

template <class Options, class T>
struct Field {
  const char* name;
  T Options::* member;
};
template <class Options, class T>
constexpr Field<Options, T> field(const char* name, T Options::* member) {
  return {name, member};
}

// What option `name` holds. Numbers fit each other where nothing is lost (8.0 for an int). Another type is an
// xformers::Error that names the option.
void read_option(const char* name, const c10::IValue& value, int64_t& result);
void read_option(const char* name, const c10::IValue& value, double& result);
void read_option(const char* name, const c10::IValue& value, bool& result);
void read_option(const char* name, const c10::IValue& value, std::string& result);
void read_option(const char* name, const c10::IValue& value, std::vector<int64_t>& result);
void read_option(const char* name, const c10::IValue& value, at::Tensor& result);
template <class T>
void read_option(const char* name, const c10::IValue& value, std::optional<T>& result) {
  read_option(name, value, result.emplace());
}

// Options that are missing or None keep their defaults.
template <class Options>
Options read_options(const OptionMap& given) {
  Options options;
  const auto read = [&](const auto& field) {
    const auto found = given.find(field.name);
    if (found != given.end() && !found->second.isNone()) read_option(field.name, found->second, options.*field.member);
  };
  std::apply([&](const auto&... fields) { (read(fields), ...); }, Options::fields());
  return options;
}

template <class Options>
std::vector<std::string> option_names() {
  return std::apply([](const auto&... fields) { return std::vector<std::string>{fields.name...}; }, Options::fields());
}

}  // namespace xformers::nn
