// The learning rate over a run.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace microgpt {

// Rises linearly over the first steps; falls from 1 to 0.1 along half a cosine as `fraction` of the run goes from 0
// to 1.
inline double learning_rate_factor(int64_t step, int64_t warmup_steps, double fraction) {
  const double warmup = std::min(1.0, static_cast<double>(step + 1) / static_cast<double>(warmup_steps + 1));
  const double cosine = 0.5 * (1 + std::cos(std::numbers::pi * std::clamp(fraction, 0.0, 1.0)));
  return warmup * (0.1 + 0.9 * cosine);
}

}  // namespace microgpt
