#include "xformers/profiler/ranks.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <exception>
#include <map>
#include <mutex>
#include <numeric>
#include <thread>
#include <unordered_map>

#include "xformers/kernels/base/check.h"
#include "xformers/profiler/facts.h"

namespace xformers::profiler {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> traces_in(const fs::path& folder) {
  std::vector<fs::path> packed, plain;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file(ignored)) continue;
    if (name.ends_with("trace.json.gz")) packed.push_back(entry.path());
    if (name.ends_with(".json") && name != "report.json" && !name.ends_with(kFactsEnding))
      plain.push_back(entry.path());
  }
  std::vector<fs::path>& found = packed.empty() ? plain : packed;
  std::sort(found.begin(), found.end());
  return found;
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const size_t middle = values.size() / 2;
  std::nth_element(values.begin(), values.begin() + middle, values.end());
  if (values.size() % 2 == 1) return values[middle];
  return (values[middle] + *std::max_element(values.begin(), values.begin() + middle)) / 2;
}

std::vector<Deviation> deviations(const std::vector<RankTimes>& ranks, bool communication) {
  std::map<std::string, std::vector<double>> times;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    for (const auto& [kernel, seconds] : ranks[rank].kernels) {
      if (is_communication(kernel) != communication) continue;
      std::vector<double>& of_kernel = times[kernel];
      of_kernel.resize(ranks.size());
      of_kernel[rank] = seconds;
    }
  }
  std::vector<Deviation> result;
  for (const auto& [kernel, seconds] : times) {
    const auto n = static_cast<double>(seconds.size());
    Deviation row{kernel};
    row.mean = std::accumulate(seconds.begin(), seconds.end(), 0.0) / n;
    double squares = 0;
    for (double value : seconds) squares += (value - row.mean) * (value - row.mean);
    row.deviation = seconds.size() > 1 ? std::sqrt(squares / (n - 1)) : 0;
    row.slowest = static_cast<int>(std::max_element(seconds.begin(), seconds.end()) - seconds.begin());
    row.excess = seconds[row.slowest] - median(seconds);
    result.push_back(row);
  }
  std::sort(result.begin(), result.end(), [](const Deviation& a, const Deviation& b) {
    return a.deviation != b.deviation ? a.deviation > b.deviation : a.kernel < b.kernel;
  });
  return result;
}

// Who comes last at a collective is in it for the shortest time: the others wait there. Collectives are the same on all
// ranks, so the i-th of one is the i-th of another.
std::vector<Lateness> lateness(const std::vector<RankTimes>& ranks) {
  size_t common = ranks.size() > 1 ? SIZE_MAX : 0;
  for (const RankTimes& rank : ranks) common = std::min(common, rank.collectives.size());
  std::vector<Lateness> result(ranks.size());
  for (size_t rank = 0; rank < ranks.size(); ++rank) result[rank].rank = static_cast<int>(rank);
  std::vector<double> each(ranks.size());
  for (size_t i = 0; i < common; ++i) {
    for (size_t rank = 0; rank < ranks.size(); ++rank) each[rank] = ranks[rank].collectives[i];
    const double usual = median(each);
    const size_t last = std::min_element(each.begin(), each.end()) - each.begin();
    result[last].seconds += (usual - each[last]) * 1e-6;
  }
  std::sort(result.begin(), result.end(), [](const Lateness& a, const Lateness& b) {
    return a.seconds != b.seconds ? a.seconds > b.seconds : a.rank < b.rank;
  });
  return result;
}

std::string name_of(const RankTimes& rank) {
  std::string text = rank.info.rank >= 0 ? "rank " + std::to_string(rank.info.rank) + ", " : "";
  return text + (rank.info.name.empty() ? fs::path(rank.info.path).filename().string() : rank.info.name);
}

template <class... Values>
std::string line(const char* format, Values... values) {
  char text[512];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}

}  // namespace

std::vector<fs::path> find_traces(const fs::path& folder) {
  std::vector<fs::path> found = traces_in(folder);
  if (!found.empty()) return found;
  std::vector<fs::path> folders;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder, ignored)) {
    if (entry.is_directory(ignored)) folders.push_back(entry.path());
  }
  std::sort(folders.rbegin(), folders.rend());
  for (const fs::path& inner : folders) {
    found = traces_in(inner);
    if (!found.empty()) break;
  }
  return found;
}

size_t default_threads() { return std::max(std::thread::hardware_concurrency(), 1u); }

void for_each_parallel(size_t count, size_t threads, const std::function<void(size_t)>& body) {
  std::atomic<size_t> next{0};
  std::mutex one_at_a_time;
  std::exception_ptr first;
  const auto work = [&] {
    for (size_t i = next++; i < count; i = next++) {
      try {
        body(i);
      } catch (...) {
        const std::lock_guard lock(one_at_a_time);
        if (!first) first = std::current_exception();
      }
    }
  };
  {
    std::vector<std::jthread> others;  // joined at the end, whatever happens
    for (size_t i = 1; i < std::min(threads, count); ++i) others.emplace_back(work);
    work();
  }
  if (first) std::rethrow_exception(first);
}

RankTimes rank_times(const fs::path& trace) {
  RankTimes times;
  std::unordered_map<std::string, double> kernels, operators;
  std::vector<std::pair<double, float>> collectives;
  times.info = read_trace(trace, [&](const TraceEvent& event) {
    const bool is_kernel = event.category == "kernel" || event.category == "gpu_memcpy";
    if (is_kernel) {
      kernels[event.name] += event.duration * 1e-6;
      if (is_communication(event.name)) collectives.emplace_back(event.start, static_cast<float>(event.duration));
    } else if (event.category == "cpu_op" && kernels.empty()) {
      operators[event.name] += event.duration * 1e-6;
    }
  });
  const auto& used = kernels.empty() ? operators : kernels;
  times.kernels.assign(used.begin(), used.end());
  std::sort(collectives.begin(), collectives.end());
  for (const auto& [start, duration] : collectives) times.collectives.push_back(duration);
  for (const auto& [name, seconds] : times.kernels) times.communication += is_communication(name) ? seconds : 0;
  return times;
}

RankTimes rank_times(const Analysis& analysis) {
  RankTimes times{analysis.info, {}, analysis.collectives, 0};
  for (const Work& work : analysis.on_gpu ? analysis.kernels : analysis.operators) {
    times.kernels.emplace_back(work.name, work.time * 1e-6);
    if (is_communication(work.name)) times.communication += work.time * 1e-6;
  }
  return times;
}

Slowest compare_ranks(std::vector<RankTimes> ranks) {
  Slowest result{std::move(ranks), {}, {}, {}};
  result.communication = deviations(result.ranks, true);
  result.computation = deviations(result.ranks, false);
  result.late = lateness(result.ranks);
  return result;
}

Slowest find_slowest(const fs::path& folder) {
  const std::vector<fs::path> traces = find_traces(folder);
  if (traces.empty()) {
    fail({.where = "find_slowest",
          .name = folder.string(),
          .got = "a folder without traces",
          .expected = "*trace.json.gz or *.json in it, or in one of its folders",
          .fix = "pass the output_dir of xformers.profiler.profile, or a folder in it"});
  }
  std::vector<RankTimes> ranks(traces.size());
  for_each_parallel(traces.size(), default_threads(), [&](size_t i) { ranks[i] = rank_times(traces[i]); });
  std::erase_if(ranks, [](const RankTimes& rank) { return rank.info.events == 0; });
  if (ranks.empty()) {
    fail({.where = "find_slowest",
          .name = folder.string(),
          .got = "a folder of " + std::to_string(traces.size()) + " traces without a readable event",
          .expected = "at least one whole trace",
          .fix = "profile again, and look for a full disk"});
  }
  return compare_ranks(std::move(ranks));
}

std::string describe(const Slowest& slowest) {
  constexpr size_t kEnds = 3, kTop = 5;
  std::vector<const RankTimes*> by_communication;
  for (const RankTimes& rank : slowest.ranks) by_communication.push_back(&rank);
  std::stable_sort(by_communication.begin(), by_communication.end(),
                   [](const RankTimes* a, const RankTimes* b) { return a->communication > b->communication; });
  const size_t shown = std::min(kEnds, by_communication.size());
  std::string text = line("%zu traces\n", slowest.ranks.size());
  text += "Longest in communication (these wait for others):\n";
  for (size_t i = 0; i < shown; ++i) {
    text += line("  %10.3f ms  %s\n", by_communication[i]->communication * 1e3, name_of(*by_communication[i]).c_str());
  }
  text += "Shortest in communication (others wait for these):\n";
  for (size_t i = 0; i < shown; ++i) {
    const RankTimes& rank = *by_communication[by_communication.size() - 1 - i];
    text += line("  %10.3f ms  %s\n", rank.communication * 1e3, name_of(rank).c_str());
  }
  const auto table = [&](const char* title, const std::vector<Deviation>& rows) {
    text += title;
    for (size_t i = 0; i < std::min(kTop, rows.size()); ++i) {
      const Deviation& row = rows[i];
      text += line("  %10.3f ms  mean %10.3f ms  slowest: %s, %.3f ms over the median  ", row.deviation * 1e3,
                   row.mean * 1e3, name_of(slowest.ranks[row.slowest]).c_str(), row.excess * 1e3);
      text += row.kernel + "\n";
    }
  };
  table("Standard deviation across ranks, communication:\n", slowest.communication);
  table("Standard deviation across ranks, computation:\n", slowest.computation);
  if (!slowest.late.empty() && slowest.late[0].seconds > 0) {
    text += "Last at collectives:\n";
    for (size_t i = 0; i < std::min(kEnds, slowest.late.size()); ++i) {
      text += line("  %10.3f ms  %s\n", slowest.late[i].seconds * 1e3,
                   name_of(slowest.ranks[slowest.late[i].rank]).c_str());
    }
  }
  for (const RankTimes& rank : slowest.ranks) {
    if (!rank.info.problem.empty()) text += "Note: " + rank.info.problem + ".\n";
  }
  return text;
}

}  // namespace xformers::profiler
