// Attention on the CPU against PyTorch's SDPA and the plain formula: same values, same threads, same run, in turns.
#include <ATen/Parallel.h>

#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>
#include <optional>

#include "benchmarks/attention/report.h"
#include "benchmarks/attention/rows.h"
#include "benchmarks/common/machine.h"
#include "benchmarks/common/options.h"
#include "benchmarks/common/peak_memory.h"

namespace xformers::bench {
namespace {

struct Options {
  CommonOptions common;
  RowOptions rows;
  bool no_memory = false;
};

std::optional<int> parse(Options& options, int argc, char** argv) {
  CLI::App app{
      "Measures attention forward and backward against PyTorch's SDPA and the plain formula.\n"
      "Every row takes the sides in turns on the same values and threads; docs/benchmarks.md explains the columns."};
  app.add_flag("--no-memory", options.no_memory, "Leave out the peak memory rows");
  const auto code = parse_options(app, options.common, argc, argv);
  options.rows.quick = options.common.quick;
  options.rows.filter = options.common.filter;
  return code;
}

// In child processes, before LibTorch has threads.
std::vector<MeasuredMemory> measure_memory(const Options& options) {
  std::vector<MeasuredMemory> memory;
  if (options.no_memory) return memory;
  for (const Row& row : memory_rows(options.rows)) {
    const auto extra = [&](bool ours) {
      return in_child([&] {
        if (options.common.threads > 0) at::set_num_threads(options.common.threads);
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
    measured.push_back(measure(row, options.common.alternate, options.rows.quick));
    print_row(measured.back());
  }
  return measured;
}

int run(int argc, char** argv) {
  Options options;
  if (const auto code = parse(options, argc, argv)) return *code;
  if (options.common.list) {
    for (const Row& row : memory_rows(options.rows)) std::printf("%s\n", row.name.c_str());
    for (const Row& row : attention_rows(options.rows)) std::printf("%s\n", row.name.c_str());
    return 0;
  }
  const std::vector<MeasuredMemory> memory = measure_memory(options);
  if (options.common.threads > 0) at::set_num_threads(options.common.threads);
  const Machine machine = this_machine();
  std::printf("\n%s, %d of %d CPUs, torch %s, ONEDNN_MAX_CPU_ISA %s, %s\n", machine.cpu_model.c_str(), machine.threads,
              machine.cpus, machine.torch_version.c_str(), machine.onednn_max_isa.c_str(), machine.date.c_str());
  const std::vector<Measured> rows = measure_rows(options);
  const std::vector<Goal> summary = goals(rows, memory);
  print_goals(summary);
  nlohmann::json result = to_json(rows, memory);
  result["summary"] = to_json(summary);
  write_json(std::move(result), options.common);
  return 0;
}

}  // namespace
}  // namespace xformers::bench

int main(int argc, char** argv) try { return xformers::bench::run(argc, argv); } catch (const std::exception& error) {
  std::fprintf(stderr, "bench_attention: %s\n", error.what());
  return 1;
}
