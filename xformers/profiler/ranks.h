// The traces of all ranks side by side: which kernels take longer on some, and who arrives last at the collectives.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "xformers/profiler/analysis.h"

namespace xformers::profiler {

// Traces of a folder, by name: *trace.json.gz, else *.json that isn't a report; of the last of its folders that holds
// any where it holds none itself. Empty where there are none.
std::vector<std::filesystem::path> find_traces(const std::filesystem::path& folder);

// Calls body(index) for all indices below count, on so many threads. Throws the first exception of them, at the end.
void for_each_parallel(size_t count, size_t threads, const std::function<void(size_t)>& body);
size_t default_threads();

// One rank's time, in seconds.
struct RankTimes {
  TraceInfo info;
  std::vector<std::pair<std::string, double>>
      kernels;                     // by name, summed; operators of the CPU where there are no kernels
  std::vector<float> collectives;  // microseconds each, in order
  double communication = 0;
};

RankTimes rank_times(const std::filesystem::path& trace);
RankTimes rank_times(const Analysis& analysis);

// A kernel whose time differs between ranks.
struct Deviation {
  std::string kernel;
  double deviation = 0;  // sample standard deviation, seconds; 0 with one rank
  double mean = 0;
  int slowest = -1;   // index of the rank that takes longest
  double excess = 0;  // of that rank over the median, seconds
};

struct Lateness {
  int rank = -1;       // index
  double seconds = 0;  // that the other ranks waited in collectives because this one came later
};

struct Slowest {
  std::vector<RankTimes> ranks;
  std::vector<Deviation> communication, computation;  // largest deviation first
  std::vector<Lateness> late;                         // latest first
};

// Throws Error for a folder without traces, or whose traces all are damaged before the first event.
Slowest compare_ranks(std::vector<RankTimes> ranks);
Slowest find_slowest(const std::filesystem::path& folder);
std::string describe(const Slowest& slowest);  // as the command prints it

}  // namespace xformers::profiler
