// One process of the comparison: a few training steps with one attention, timed, and the memory that they took.
#include <fmt/format.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "examples/microgpt/compare.h"
#include "examples/microgpt/device.h"
#include "examples/microgpt/error.h"
#include "examples/microgpt/trainer.h"

namespace microgpt {
namespace {

// "VmRSS" (now) or "VmHWM" (highest so far) of this process.
int64_t resident_bytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(field + ":")) return std::stoll(line.substr(field.size() + 1)) * 1024;
  }
  throw Error("cannot read memory use from /proc/self/status");
}

}  // namespace

int measure(const CompareOptions& options) {
  const Dataset dataset(load_text(options.text), options.model.context);
  Trainer trainer(options.model, options.compute, /*weight_decay=*/0.1, options.seed);
  const bool on_gpu = options.compute.device == "cuda";
  if (on_gpu) forget_gpu_peak();
  const int64_t start_bytes = on_gpu ? gpu_peak_bytes() : resident_bytes("VmRSS");
  std::vector<double> seconds;
  double bits_per_byte = 0;
  for (int64_t step = 0; step <= options.steps; ++step) {
    const Batch batch = dataset.train_batch(options.batch, options.seed, step);
    const auto begin = std::chrono::steady_clock::now();
    bits_per_byte = trainer.step(batch, /*learning_rate=*/1e-3);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    if (step > 0) seconds.push_back(taken.count());  // the first one warms up
  }
  const nlohmann::json json = {{"seconds", seconds},
                               {"start_bytes", start_bytes},
                               {"peak_bytes", on_gpu ? gpu_peak_bytes() : resident_bytes("VmHWM")},
                               {"bits_per_byte", bits_per_byte}};
  fmt::print("{}\n", json.dump());
  return 0;
}

}  // namespace microgpt
