#include "benchmarks/common/peak_memory.h"

#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <fstream>
#include <string>

namespace xformers::bench {
namespace {

int64_t status_bytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(field)) return std::stoll(line.substr(field.size())) * 1024;
  }
  return 0;
}

}  // namespace

int64_t resident_memory() { return status_bytes("VmRSS:"); }
int64_t peak_memory() { return status_bytes("VmHWM:"); }

bool reset_peak_memory() {
  malloc_trim(0);
  std::ofstream refs("/proc/self/clear_refs");
  refs << "5\n";
  return static_cast<bool>(refs.flush());
}

std::optional<double> in_child(const std::function<double()>& measure) {
  int ends[2];
  if (pipe(ends) != 0) return std::nullopt;
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    close(ends[0]);
    int code = 0;
    try {
      const double value = measure();
      code = write(ends[1], &value, sizeof value) == sizeof value ? 0 : 1;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      code = 1;
    }
    _exit(code);
  }
  close(ends[1]);
  double value = 0;
  const bool arrived = child > 0 && read(ends[0], &value, sizeof value) == sizeof value;
  close(ends[0]);
  if (child > 0) waitpid(child, nullptr, 0);
  return arrived ? std::optional(value) : std::nullopt;
}

}  // namespace xformers::bench
