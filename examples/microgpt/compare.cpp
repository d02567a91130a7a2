#include "examples/microgpt/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "examples/common/atomic_file.h"
#include "examples/microgpt/attention.h"
#include "examples/microgpt/child_process.h"
#include "examples/microgpt/error.h"

namespace microgpt {
namespace {

struct Row {
  std::vector<double> seconds;  // per step, of all processes
  int64_t peak_bytes = 0;       // the largest over the processes
  int64_t steps_bytes = 0;      // of it, what training took beyond the loaded program, model and text
  double bits_per_byte = 0;     // loss of the last step: the same for all, up to rounding
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

std::vector<std::string> command(const CompareOptions& options, const std::string& attention) {
  std::vector<std::string> argv = {"/proc/self/exe",      "measure",  "--attention",         attention, "--dtype",
                                   options.compute.dtype, "--device", options.compute.device};
  const auto add = [&](const char* name, auto value) { argv.insert(argv.end(), {name, fmt::to_string(value)}); };
  add("--threads", options.compute.threads);
  add("--layers", options.model.layers);
  add("--dim", options.model.dim);
  add("--heads", options.model.heads);
  add("--seqlen", options.model.context);
  add("--batch", options.batch);
  add("--steps", options.steps);
  add("--seed", options.seed);
  add("--python", options.text.python);
  for (const std::string& path : options.text.paths) add("--text", path);
  return argv;
}

// One process; returns the median of its steps in seconds. On a GPU an attention may fail, for want of memory or
// because it doesn't exist there: nothing, then.
std::optional<double> add_process(Row& row, const CompareOptions& options, const std::string& attention) {
  const ChildResult child = run_child(command(options, attention));
  if (child.exit_code != 0) {
    if (options.compute.device == "cuda" && attention != "ours") return std::nullopt;
    throw Error(fmt::format("measuring attention '{}' failed with exit code {}", attention, child.exit_code));
  }
  const nlohmann::json json = nlohmann::json::parse(child.out);
  const auto seconds = json.at("seconds").get<std::vector<double>>();
  const auto peak = json.at("peak_bytes").get<int64_t>(), start = json.at("start_bytes").get<int64_t>();
  row.seconds.insert(row.seconds.end(), seconds.begin(), seconds.end());
  row.peak_bytes = std::max(row.peak_bytes, peak);
  row.steps_bytes = std::max(row.steps_bytes, peak - start);
  row.bits_per_byte = json.at("bits_per_byte").get<double>();
  return median(seconds);
}

}  // namespace

int compare(const CompareOptions& options) {
  const std::vector<std::string> attentions =
      options.compute.device == "cuda" ? std::vector<std::string>{"ours", "flash", "cudnn", "efficient", "vanilla"}
                                       : std::vector<std::string>{"ours", "sdpa", "vanilla"};
  fmt::print("training step at sequence length {}: batch {}, {} layers, dim {}, {} heads, {} on {}\n",
             options.model.context, options.batch, options.model.layers, options.model.dim, options.model.heads,
             options.compute.dtype, options.compute.device);
  std::map<std::string, Row> rows;
  for (int64_t round = 0; round < options.rounds; ++round) {
    fmt::print("round {} of {}:", round + 1, options.rounds);
    for (const std::string& name : attentions) {
      std::fflush(stdout);
      if (round > 0 && rows[name].seconds.empty()) continue;  // it failed
      const std::optional<double> seconds = add_process(rows[name], options, name);
      fmt::print("  {} {}", name, seconds ? fmt::format("{:.1f} ms", 1e3 * *seconds) : "does not run");
    }
    fmt::print("\n");
  }

  nlohmann::json table = nlohmann::json::array();
  fmt::print("{:<10} {:>12} {:>9} {:>14} {:>16} {:>10}\n", "attention", "ms per step", "x ours", "peak memory",
             "of it for steps", "loss");
  const double ours = median(rows.at(attentions.front()).seconds);
  for (const std::string& name : attentions) {
    const Row& row = rows.at(name);
    if (row.seconds.empty()) continue;
    const double seconds = median(row.seconds);
    fmt::print("{:<10} {:>12.1f} {:>9.2f} {:>10.0f} MiB {:>12.0f} MiB {:>10.4f}\n", name, 1e3 * seconds, seconds / ours,
               static_cast<double>(row.peak_bytes) / (1 << 20), static_cast<double>(row.steps_bytes) / (1 << 20),
               row.bits_per_byte);
    table.push_back({{"attention", name},
                     {"median_seconds", seconds},
                     {"seconds", row.seconds},
                     {"peak_bytes", row.peak_bytes},
                     {"steps_bytes", row.steps_bytes},
                     {"bits_per_byte", row.bits_per_byte}});
  }
  if (!options.report.empty()) {
    const nlohmann::json json = {
        {"program", "microgpt compare"},    {"seqlen", options.model.context}, {"batch", options.batch},
        {"layers", options.model.layers},   {"dim", options.model.dim},        {"heads", options.model.heads},
        {"device", options.compute.device}, {"dtype", options.compute.dtype},  {"rows", table}};
    examples::write_file_atomically(options.report, json.dump(1) + "\n");
  }
  return 0;
}

}  // namespace microgpt
