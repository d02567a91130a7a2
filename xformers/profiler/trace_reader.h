// Reads traces that torch.profiler wrote (Chrome's JSON, plain or gzip) event by event: neither the text nor the events
// are kept, so that a trace may be larger than memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "xformers/profiler/cost.h"

namespace xformers::profiler {

// A complete event ("ph": "X"), or an allocation ("[memory]", without duration). Times in microseconds.
struct TraceEvent {
  std::string name, category;
  double start = 0, duration = 0;
  int thread = 0;  // a number per pair of process and thread
  int64_t correlation = -1, external_id = -1, sequence = -1, forward_thread = 0;
  int64_t bytes = 0, total_allocated = -1, device = -1;  // of an allocation
  std::vector<Argument> arguments;                       // of operators whose cost is known

  double end() const { return start + duration; }
  void clear();
};

struct TraceInfo {
  std::string path, name;  // name: as the trace calls itself
  int rank = -1;           // -1: it doesn't say
  int world_size = -1;
  std::string device;  // of the first GPU; "" where there is none
  int major = 0, minor = 0;
  int64_t events = 0;   // that were read
  std::string problem;  // why reading ended early, as one sentence; events before it are good
};

using OnEvent = std::function<void(const TraceEvent&)>;

// A file that cannot be opened is a problem too, not an exception.
TraceInfo read_trace(const std::filesystem::path& path, const OnEvent& on_event);
TraceInfo read_trace_text(std::string_view text, const OnEvent& on_event);

}  // namespace xformers::profiler
