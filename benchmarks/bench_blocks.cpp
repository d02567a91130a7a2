// The operators around attention on the CPU against eager PyTorch: same values, same threads, same run, in turns,
// beside a copy of as many bytes as the operator has to move.
#include <ATen/Parallel.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <cmath>
#include <cstdio>
#include <exception>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "benchmarks/blocks/rows.h"
#include "benchmarks/common/bandwidth.h"
#include "benchmarks/common/machine.h"
#include "benchmarks/common/options.h"

namespace xformers::bench {
namespace {

std::optional<int> parse(CommonOptions& options, int argc, char** argv) {
  CLI::App app{
      "Measures norms, softmax, rotary embeddings, SwiGLU, fused layers and indexing against eager PyTorch and against "
      "a\n"
      "copy of as many bytes.\n"
      "Every row takes the sides in turns on the same values and threads; docs/benchmarks.md explains the columns."};
  return parse_options(app, options, argc, argv);
}

// Freed memory stays with the process, as under an allocator that keeps it: otherwise every call would first pay for
// new pages, which costs all sides more than the work itself.
void keep_freed_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);  // never give back
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
  CommonOptions options;
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
  write_json(std::move(result), options);
  return 0;
}

}  // namespace
}  // namespace xformers::bench

int main(int argc, char** argv) try { return xformers::bench::run(argc, argv); } catch (const std::exception& error) {
  std::fprintf(stderr, "bench_blocks: %s\n", error.what());
  return 1;
}
