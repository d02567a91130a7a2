// What was measured, as a table on stdout, as JSON, and against the goals.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "benchmarks/attention/rows.h"
#include "benchmarks/attention/sides.h"
#include "benchmarks/common/alternate.h"

namespace xformers::bench {

struct Measured {
  Row row;
  std::string kernel;  // that ours ran
  std::map<Role, std::vector<Timing>> timings;

  const Timing& ours() const { return timings.at(Role::kOurs).front(); }
  const Timing* best_rival() const;                   // the fastest
  const Timing* side(const std::string& name) const;  // null: not measured
  double speedup() const;                             // the best rival's time over ours
  double gflops(const Timing& timing) const { return row.flops() / timing.median / 1e9; }
  std::optional<double> of_gemm() const;   // ours, as a part of the GEMM rate measured beside it
  std::optional<double> of_dense() const;  // ours, as a part of the rate without its block mask
  std::optional<double> of_read() const;   // ours, as a part of the read bandwidth measured beside it
};

struct MeasuredMemory {
  Row row;
  std::optional<double> ours, sdpa;  // bytes
};

Measured measure(const Row& row, const AlternateOptions& options, bool quick);

void print_header(Family family);
void print_row(const Measured& measured);
void print_memory(const std::vector<MeasuredMemory>& memory);

// A line of the summary: a number and the goal that it should meet, if there is one.
struct Goal {
  std::string name;
  double value;
  std::optional<double> wanted;
  bool at_least = true;

  bool met() const { return !wanted || (at_least ? value >= *wanted : value <= *wanted); }
};

std::vector<Goal> goals(const std::vector<Measured>& rows, const std::vector<MeasuredMemory>& memory);
void print_goals(const std::vector<Goal>& goals);

nlohmann::json to_json(const std::vector<Measured>& rows, const std::vector<MeasuredMemory>& memory);
nlohmann::json to_json(const std::vector<Goal>& goals);

}  // namespace xformers::bench
