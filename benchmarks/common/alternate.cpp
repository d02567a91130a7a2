#include "benchmarks/common/alternate.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace xformers::bench {
namespace {

double seconds(const std::function<void()>& run, int64_t calls) {
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < calls; ++i) run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double quantile(const std::vector<double>& sorted, double q) {
  const double place = q * static_cast<double>(sorted.size() - 1);
  const size_t below = static_cast<size_t>(place), above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

// The samples of one side.
struct Record {
  const Side& side;
  const AlternateOptions& options;
  int64_t calls = 1;
  double total = 0;
  std::vector<double> samples{};

  void warm_up() {
    const double first = seconds(side.run, 1);
    const double once = first > options.sample_seconds * 10 ? first : seconds(side.run, 1);
    calls = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(options.sample_seconds / std::max(once, 1e-7))));
  }
  void sample() {
    const double elapsed = seconds(side.run, calls);
    total += elapsed;
    samples.push_back(elapsed / static_cast<double>(calls));
  }
  bool done() const {
    const int count = static_cast<int>(samples.size());
    if (side.max_samples > 0 && count >= side.max_samples) return true;
    if (count >= options.min_samples && total >= options.min_seconds) return true;
    // Calls of seconds: fewer of them say enough.
    return (count >= 3 && total >= 3 * options.min_seconds) || (count >= 2 && total >= 8 * options.min_seconds);
  }
  Timing timing() const {
    std::vector<double> sorted = samples;
    std::sort(sorted.begin(), sorted.end());
    return {side.name, quantile(sorted, 0.5), quantile(sorted, 0.25), quantile(sorted, 0.75),
            static_cast<int>(sorted.size())};
  }
};

}  // namespace

std::vector<Timing> alternate(const std::vector<Side>& sides, const AlternateOptions& options) {
  std::vector<Record> records;
  for (const Side& side : sides) records.push_back({side, options});
  for (Record& record : records) record.warm_up();
  for (size_t round = 0; !std::all_of(records.begin(), records.end(), [](const Record& r) { return r.done(); });
       ++round) {
    for (size_t i = 0; i < records.size(); ++i) {
      Record& record = records[(i + round) % records.size()];
      if (!record.done()) record.sample();
    }
  }
  std::vector<Timing> timings;
  for (const Record& record : records) timings.push_back(record.timing());
  return timings;
}

}  // namespace xformers::bench
