// The command line and the JSON file that all drivers share.
#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "benchmarks/common/alternate.h"

namespace xformers::bench {

struct CommonOptions {
  AlternateOptions alternate;
  std::string filter, json, commit;
  int threads = 0;  // 0: LibTorch's default
  bool quick = false, list = false;
};

// Adds these options to the driver's own and parses them all; an exit code where the program should end.
std::optional<int> parse_options(CLI::App& app, CommonOptions& options, int argc, char** argv);

// Adds machine, commit and quick to the result and writes it to options.json, where there is one.
void write_json(nlohmann::json result, const CommonOptions& options);

}  // namespace xformers::bench
