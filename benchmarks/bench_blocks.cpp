// The operators around attention on the CPU against eager PyTorch: same values, same threads, same run, in turns,
// beside a copy of as many bytes as the operator has to move.
#include <ATen/Parallel.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <stdexcept>
#include <string>

#include "benchmarks/blocks/rows.h"
#include "benchmarks/common/bandwidth.h"
#include "benchmarks/common/machine.h"

namespace xformers::bench {
namespace {

struct Options {
  AlternateOptions alternate;
  std::string filter, json, commit;
  int threads = 0;
  bool quick = false, list = false;
};

std::optional<int> parse(Options& options, int argc, char** argv) {
  CLI::App app{
      "Measures norms, rotary embeddings, SwiGLU and indexing against eager PyTorch and against a copy of as many "
      "bytes.\n"
      "Every row takes the sides in turns on the same values and threads; docs/benchmarks.md explains the columns."};
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

// Freed memory stays with the process, as under an allocator that keeps it: otherwise every call would first pay for
// new pages, which costs all sides more than the work itself.
void keep_freed_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_TOP_PAD, 1 << 28);
#endif
}

struct Measured {
  std::string name;
  double bytes;
  std::vector<Timing> timings;  // ours, eager, copy (of memory-bound rows)

  double speedup() const { return timings[1].median / timings[0].median; }
  double bandwidth() const { return bytes / timings[0].median / 1e9; }
  std::optional<double> of_copy() const {
    return timings.size() > 2 ? std::optional(timings[2].median / timings[0].median) : std::nullopt;
  }
};

Measured measure(const BlockRow& row, const AlternateOptions& options) {
  std::vector<Side> sides = row.sides();
  if (row.bytes > 0) {  // half of it read, half of it written: as many bytes as the row moves
    const auto buffer = std::make_shared<BandwidthBuffer>(static_cast<int64_t>(row.bytes));
    sides.push_back({"copy", [buffer] { buffer->copy(); }});
  }
  return {row.name, row.bytes, alternate(sides, options)};
}

void print(const Measured& m) {
  std::printf("%-52s %10.3f %5.0f %10.3f %8.2fx", m.name.c_str(), m.timings[0].median * 1e3, 50 * m.timings[0].spread(),
              m.timings[1].median * 1e3, m.speedup());
  if (const auto part = m.of_copy()) std::printf(" %8.1f %7.0f%%", m.bandwidth(), 100 * *part);
  std::printf("\n");
  std::fflush(stdout);
}

nlohmann::json to_json(const Measured& m) {
  nlohmann::json row{{"name", m.name}, {"bytes", m.bytes}, {"speedup_over_eager", m.speedup()}};
  for (const Timing& t : m.timings) {
    row["sides"][t.side] = {{"median", t.median}, {"low", t.low}, {"high", t.high}, {"samples", t.samples}};
  }
  if (const auto part = m.of_copy()) row["of_copy"] = *part, row["gigabytes_per_second"] = m.bandwidth();
  return row;
}

int run(int argc, char** argv) {
  Options options;
  if (const auto code = parse(options, argc, argv)) return *code;
  const std::vector<BlockRow> rows = block_rows(options.filter, options.quick);
  if (options.list) {
    for (const BlockRow& row : rows) std::printf("%s\n", row.name.c_str());
    return 0;
  }
  keep_freed_memory();
  if (options.threads > 0) at::set_num_threads(options.threads);
  const Machine machine = this_machine();
  std::printf("%s, %d of %d CPUs, torch %s, %s\n\n%-52s %10s %5s %10s %9s %8s %8s\n", machine.cpu_model.c_str(),
              machine.threads, machine.cpus, machine.torch_version.c_str(), machine.date.c_str(), "row", "ours ms",
              "+-%", "eager ms", "speedup", "GB/s", "of copy");
  nlohmann::json result;
  double log_speedups = 0, worst_speedup = INFINITY, worst_copy = INFINITY;
  for (const BlockRow& row : rows) {
    const Measured measured = measure(row, options.alternate);
    print(measured);
    result["rows"].push_back(to_json(measured));
    log_speedups += std::log(measured.speedup());
    worst_speedup = std::min(worst_speedup, measured.speedup());
    if (const auto part = measured.of_copy()) worst_copy = std::min(worst_copy, *part);
  }
  if (!rows.empty()) {
    std::printf("\nspeedup over eager: mean %.2fx, least %.2fx; least part of the copy's bandwidth: %.0f%%\n",
                std::exp(log_speedups / static_cast<double>(rows.size())), worst_speedup, 100 * worst_copy);
  }
  if (options.json.empty()) return 0;
  result["machine"] = to_json(machine);
  result["commit"] = options.commit;
  result["quick"] = options.quick;
  std::ofstream file(options.json);
  file << result.dump(1) << "\n";
  if (!file.flush()) throw std::runtime_error("could not write " + options.json);
  std::printf("wrote %s\n", options.json.c_str());
  return 0;
}

}  // namespace
}  // namespace xformers::bench

int main(int argc, char** argv) try { return xformers::bench::run(argc, argv); } catch (const std::exception& error) {
  std::fprintf(stderr, "bench_blocks: %s\n", error.what());
  return 1;
}
