// What bounds a step and what to do first, in three sentences.
#pragma once

#include <string>
#include <vector>

#include "xformers/profiler/analysis.h"
#include "xformers/profiler/ranks.h"

namespace xformers::profiler {

// What is known about the step that is judged. Shares are of the device's limits, -1 where unknown.
struct Judged {
  Step step;  // the mean of the steps
  bool on_gpu = false;
  double products_share = -1, attention_share = -1, bandwidth_share = -1;
  const Slowest* ranks = nullptr;  // of several
  double slowest_over_median = 0;  // seconds that the step waits for the slowest rank's kernels
};

std::vector<std::string> verdict(const Judged& judged);

}  // namespace xformers::profiler
