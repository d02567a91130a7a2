// What one trace says: operations per dtype, where each step's time went, the slowest operators and kernels, memory.
//
// Operations. An operator counts if it multiplies (cost_rules.cpp); of nested ones the outermost. It belongs to the
// backward pass if its formula says so, if it runs inside of an event that is linked to a forward thread, or on a
// thread that does nothing else. What runs there with a sequence number of its own is recorded for autograd: a forward
// pass once more, under a checkpoint.
//
// Time. At each moment of a step one part is charged: what computes, else communication that nothing hides, else
// copies, else idle. So the parts add up to the step.
#pragma once

#include <array>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "xformers/profiler/device_limits.h"
#include "xformers/profiler/trace_reader.h"

namespace xformers::profiler {

// In the order in which they are charged.
enum class Part : uint8_t { kAttention, kProducts, kOtherCompute, kCommunication, kCopies, kIdleHost, kIdleOther };
inline constexpr size_t kParts = 7;
inline constexpr const char* kPartNames[kParts] = {
    "attention", "products", "other compute", "exposed communication", "copies", "idle: host late", "other idle"};

// Which part a kernel or an operator is, from its name.
Part part_of_name(std::string_view name);
bool is_communication(std::string_view name);

struct Step {
  std::string name;
  double start = 0, duration = 0;      // microseconds
  std::array<double, kParts> parts{};  // microseconds; their sum is the duration
  double hidden_communication = 0;     // beside computation, in none of the parts
};

// Calls of one operator, or launches of one kernel.
struct Work {
  std::string name, type;
  Part part = Part::kOtherCompute;
  int64_t calls = 0;
  double time = 0;  // microseconds
  double flops = 0, bytes = 0;
};

struct Span {  // of the timeline of one step
  std::string name;
  Part part;
  int lane;
  double start, duration;
};

struct MemoryPoint {
  double time;
  double bytes;
};

struct Operations {  // by dtype: "float16" (bf16 counts as float16, its peak is the same), "float32", ..., "unknown"
  std::map<std::string, double> forward, backward, recomputed;  // backward holds recomputed
};

struct Analysis {
  TraceInfo info;
  bool on_gpu = false;  // times are those of kernels, else of operators on the CPU
  double total_time =
      0;  // seconds: from the first kernel to the end of the last; of counted operators where there are none
  Operations operations;
  std::vector<Step> steps;
  std::vector<Work> operators, kernels;  // slowest first; kernels: on the CPU none
  std::vector<float> collectives;        // microseconds that each took, in the order in which they began
  std::vector<Span> timeline;            // of the last whole step, its longest spans
  std::vector<MemoryPoint> memory;
  double peak_bytes = 0;

  Step average() const;  // of the steps
};

// float32 for "float", float16 for "c10::BFloat16" too, float8 for every fp8; "unknown"
std::string dtype_name(std::string_view type);

Analysis analyze(const std::filesystem::path& path);
Analysis analyze_text(std::string_view trace);

// Hardware and model operations per second over the device's peak, each dtype against its own; -1 where there is no
// peak.
double hardware_utilization(const Operations& operations, double seconds, const DeviceLimit& limit);
double model_utilization(const Operations& operations, double seconds, const DeviceLimit& limit);

}  // namespace xformers::profiler
