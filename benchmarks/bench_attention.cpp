// Attention on the CPU against PyTorch's SDPA and the plain formula: same values, same threads, same run, in turns.
#include <ATen/Parallel.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <string>

#include "benchmarks/attention/report.h"
#include "benchmarks/attention/rows.h"
#include "benchmarks/common/machine.h"
#include "benchmarks/common/peak_memory.h"

namespace xformers::bench {
namespace {

struct Options {
  RowOptions rows;
  AlternateOptions alternate;
  int threads = 0;  // 0: LibTorch's default
  bool no_memory = false, list = false;
  std::string json, commit;
};

std::optional<int> parse(Options& options, int argc, char** argv) {
  CLI::App app{
      "Measures attention forward and backward against PyTorch's SDPA and the plain formula.\n"
      "Every row takes the sides in turns on the same values and threads; docs/benchmarks.md explains the columns."};
  app.add_flag("--quick", options.rows.quick, "Small sizes and short samples: under two minutes");
  app.add_option("--filter", options.rows.filter, "Only rows whose name matches this regular expression");
  app.add_flag("--list", options.list, "Print the names of the rows and stop");
  app.add_option("--threads", options.threads, "Threads for all sides (default: LibTorch's)")
      ->check(CLI::PositiveNumber);
  app.add_option("--min-time", options.alternate.min_seconds,
                 "Seconds measured per side and row (default 0.5; quick 0.1)")
      ->check(CLI::PositiveNumber);
  app.add_option("--min-samples", options.alternate.min_samples, "Samples per side and row (default 5; quick 3)")
      ->check(CLI::PositiveNumber);
  app.add_flag("--no-memory", options.no_memory, "Leave out the peak memory rows");
  app.add_option("--json", options.json, "Write everything to this file");
  app.add_option("--commit", options.commit, "Commit to name in the JSON");
  try {
    app.parse(argc, argv);
    std::regex{options.rows.filter};
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  } catch (const std::regex_error& error) {
    std::fprintf(stderr, "--filter '%s' is no regular expression: %s\n", options.rows.filter.c_str(), error.what());
    return 1;
  }
  if (options.rows.quick && app.count("--min-time") == 0) options.alternate.min_seconds = 0.1;
  if (options.rows.quick && app.count("--min-samples") == 0) options.alternate.min_samples = 3;
  return std::nullopt;
}

// In child processes, before LibTorch has threads.
std::vector<MeasuredMemory> measure_memory(const Options& options) {
  std::vector<MeasuredMemory> memory;
  if (options.no_memory) return memory;
  for (const Row& row : memory_rows(options.rows)) {
    const auto extra = [&](bool ours) {
      return in_child([&] {
        if (options.threads > 0) at::set_num_threads(options.threads);
        return extra_memory(row, ours);
      });
    };
    memory.push_back({row, extra(true), extra(false)});
  }
  print_memory(memory);
  return memory;
}

std::vector<Measured> measure_rows(const Options& options) {
  std::vector<Measured> measured;
  std::optional<Family> family;
  for (const Row& row : attention_rows(options.rows)) {
    if (family != row.family) print_header(row.family);
    family = row.family;
    measured.push_back(measure(row, options.alternate, options.rows.quick));
    print_row(measured.back());
  }
  return measured;
}

void write_json(const Options& options, const Machine& machine, const std::vector<Measured>& rows,
                const std::vector<MeasuredMemory>& memory, const std::vector<Goal>& summary) {
  nlohmann::json result = to_json(rows, memory);
  result["machine"] = to_json(machine);
  result["commit"] = options.commit;
  result["quick"] = options.rows.quick;
  result["summary"] = to_json(summary);
  std::ofstream file(options.json);
  file << result.dump(1) << "\n";
  if (!file.flush()) throw std::runtime_error("could not write " + options.json);
  std::printf("\nwrote %s\n", options.json.c_str());
}

int run(int argc, char** argv) {
  Options options;
  if (const auto code = parse(options, argc, argv)) return *code;
  if (options.list) {
    for (const Row& row : memory_rows(options.rows)) std::printf("%s\n", row.name.c_str());
    for (const Row& row : attention_rows(options.rows)) std::printf("%s\n", row.name.c_str());
    return 0;
  }
  const std::vector<MeasuredMemory> memory = measure_memory(options);
  if (options.threads > 0) at::set_num_threads(options.threads);
  const Machine machine = this_machine();
  std::printf("\n%s, %d of %d CPUs, torch %s, ONEDNN_MAX_CPU_ISA %s, %s\n", machine.cpu_model.c_str(), machine.threads,
              machine.cpus, machine.torch_version.c_str(), machine.onednn_max_isa.c_str(), machine.date.c_str());
  const std::vector<Measured> rows = measure_rows(options);
  const std::vector<Goal> summary = goals(rows, memory);
  print_goals(summary);
  if (!options.json.empty()) write_json(options, machine, rows, memory, summary);
  return 0;
}

}  // namespace
}  // namespace xformers::bench

int main(int argc, char** argv) try { return xformers::bench::run(argc, argv); } catch (const std::exception& error) {
  std::fprintf(stderr, "bench_attention: %s\n", error.what());
  return 1;
}
