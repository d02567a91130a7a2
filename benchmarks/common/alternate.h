// Times several ways of doing one thing in turns, so that whatever else the machine does hits all of them alike.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace xformers::bench {

struct Side {
  std::string name;
  std::function<void()> run;
  int max_samples = 0;  // 0: as many as the options ask for; for sides that take many seconds
};

struct Timing {
  std::string side;
  double median = 0, low = 0, high = 0;  // seconds per call: median and quartiles
  int samples = 0;

  double spread() const { return median > 0 ? (high - low) / median : 0; }
};

struct AlternateOptions {
  double min_seconds = 0.5;      // measured per side
  int min_samples = 5;           // per side
  double sample_seconds = 0.01;  // short calls are repeated to fill a sample
};

// Each round takes one sample of each side, in rotating order, after a warm-up call of each.
std::vector<Timing> alternate(const std::vector<Side>& sides, const AlternateOptions& options);

}  // namespace xformers::bench
