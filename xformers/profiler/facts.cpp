#include "xformers/profiler/facts.h"

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

namespace xformers::profiler {

std::filesystem::path facts_path(const std::filesystem::path& trace) {
  std::string name = trace.filename().string();
  for (const char* ending : {".gz", ".json", ".trace", ".pt"}) {
    if (name.ends_with(ending)) name.resize(name.size() - std::string(ending).size());
  }
  return trace.parent_path() / (name + kFactsEnding);
}

std::string facts_text(const std::filesystem::path& trace) {
  std::ifstream file(facts_path(trace));
  std::string text{std::istreambuf_iterator<char>(file), {}};
  return nlohmann::json::accept(text) && text.starts_with('{') ? text : "{}";
}

std::map<std::string, std::vector<Lengths>> packed_calls(const std::filesystem::path& trace) {
  std::map<std::string, std::vector<Lengths>> calls;
  const auto facts = nlohmann::json::parse(facts_text(trace));
  for (const auto& row : facts.value("packed", nlohmann::json::array())) {
    Lengths lengths;
    std::string name;
    for (const auto& [key, value] : row.items()) {
      if (value.is_array()) lengths[key] = value.get<std::vector<int64_t>>();
      if (key == "operator") name = value;
    }
    calls[name].push_back(std::move(lengths));
  }
  return calls;
}

}  // namespace xformers::profiler
