#include "benchmarks/common/machine.h"

#include <ATen/Parallel.h>
#include <torch/version.h>

#include <chrono>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <thread>

namespace xformers::bench {
namespace {

std::string cpu_model() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (!line.starts_with("model name")) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

std::string utc_date() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  return text;
}

}  // namespace

Machine this_machine() {
  const char* onednn = std::getenv("ONEDNN_MAX_CPU_ISA");
  return {.cpu_model = cpu_model(),
          .date = utc_date(),
          .torch_version = TORCH_VERSION,
          .onednn_max_isa = onednn ? onednn : "default",
          .cpus = static_cast<int>(std::thread::hardware_concurrency()),
          .threads = at::get_num_threads()};
}

nlohmann::json to_json(const Machine& machine) {
  return {{"cpu", machine.cpu_model}, {"cpus", machine.cpus},           {"threads", machine.threads},
          {"date", machine.date},     {"torch", machine.torch_version}, {"onednn_max_cpu_isa", machine.onednn_max_isa}};
}

}  // namespace xformers::bench
