// How fast each pair of a head turns: radians per position.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "xformers/kernels/base/check.h"
#include "xformers/kernels/params/rope.h"

namespace xformers {

// Wavelengths above old_context_len / low_freq_factor are stretched by scale_factor, those below old_context_len /
// high_freq_factor stay, those between are interpolated.
inline double stretched_frequency(double frequency, const RopeScaling& s) {
  constexpr double kTwoPi = 6.283185307179586476925;
  const double wavelength = kTwoPi / frequency;
  if (wavelength < s.old_context_len / s.high_freq_factor) return frequency;
  if (wavelength > s.old_context_len / s.low_freq_factor) return frequency / s.scale_factor;
  const double smooth = (s.old_context_len / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
  return (1 - smooth) * frequency / s.scale_factor + smooth * frequency;
}

// [head_dim / 2]. Refuses an odd head_dim.
inline std::vector<double> rope_frequencies(int64_t head_dim, const RopeScaling& scaling) {
  if (head_dim < 2 || head_dim % 2 != 0) {
    fail({.where = "rope",
          .name = "head_dim",
          .got = std::to_string(head_dim),
          .expected = "an even number",
          .fix = "elements are turned in pairs; pad the head by one"});
  }
  std::vector<double> frequencies(head_dim / 2);
  for (int64_t j = 0; j < head_dim / 2; ++j) {
    const double frequency = std::pow(scaling.theta, -2.0 * static_cast<double>(j) / static_cast<double>(head_dim));
    frequencies[j] = (scaling.dynamic ? stretched_frequency(frequency, scaling) : frequency) / scaling.linear_scale;
  }
  return frequencies;
}

}  // namespace xformers
