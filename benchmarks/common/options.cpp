#include "benchmarks/common/options.h"

#include <cstdio>
#include <fstream>
#include <regex>
#include <stdexcept>

#include "benchmarks/common/machine.h"

namespace xformers::bench {

std::optional<int> parse_options(CLI::App& app, CommonOptions& options, int argc, char** argv) {
  app.add_flag("--quick", options.quick, "Small sizes and short samples: under two minutes");
  app.add_option("--filter", options.filter, "Only rows whose name matches this regular expression");
  app.add_flag("--list", options.list, "Print the names of the rows and stop");
  app.add_option("--threads", options.threads, "Threads for all sides (default: LibTorch's)")
      ->check(CLI::PositiveNumber);
  app.add_option("--min-time", options.alternate.min_seconds,
                 "Seconds measured per side and row (default 0.5; quick 0.1)")
      ->check(CLI::PositiveNumber);
  app.add_option("--min-samples", options.alternate.min_samples, "Samples per side and row (default 5; quick 3)")
      ->check(CLI::PositiveNumber);
  app.add_option("--json", options.json, "Write everything to this file");
  app.add_option("--commit", options.commit, "Commit to name in the JSON");
  try {
    app.parse(argc, argv);
    std::regex{options.filter};
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  } catch (const std::regex_error& error) {
    std::fprintf(stderr, "--filter '%s' is no regular expression: %s\n", options.filter.c_str(), error.what());
    return 1;
  }
  if (options.quick && app.count("--min-time") == 0) options.alternate.min_seconds = 0.1;
  if (options.quick && app.count("--min-samples") == 0) options.alternate.min_samples = 3;
  return std::nullopt;
}

void write_json(nlohmann::json result, const CommonOptions& options) {
  if (options.json.empty()) return;
  result["machine"] = to_json(this_machine());
  result["commit"] = options.commit;
  result["quick"] = options.quick;
  std::ofstream file(options.json);
  file << result.dump(1) << "\n";
  if (!file.flush()) throw std::runtime_error("could not write " + options.json);
  std::printf("\nwrote %s\n", options.json.c_str());
}

}  // namespace xformers::bench
