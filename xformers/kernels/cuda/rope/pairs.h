// How a launch of the rotary kernels is cut, on the host.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "xformers/kernels/cuda/rope/turn.cuh"
#include "xformers/kernels/params/rope_frequencies.h"

namespace xformers::cuda {

// rope_frequencies; those of the last call stay at hand, since a model asks for the same ones layer by layer.
inline const std::vector<double>& recent_frequencies(int64_t head_dim, const RopeScaling& scaling) {
  const auto numbers = [](const RopeScaling& s) {
    return std::array{s.theta,        s.linear_scale,    s.dynamic ? 1.0 : 0.0, s.old_context_len,
                      s.scale_factor, s.low_freq_factor, s.high_freq_factor};
  };
  thread_local RopeScaling of;
  thread_local std::vector<double> frequencies;
  if (static_cast<int64_t>(frequencies.size()) * 2 != head_dim || numbers(of) != numbers(scaling)) {
    frequencies = rope_frequencies(head_dim, scaling);
    of = scaling;
  }
  return frequencies;
}

// fn(pairs) for each launch that a head takes: one, unless it is longer than 2 kRopeMaxPairs.
template <class Fn>
void for_each_launch(int64_t head_dim, int width, bool adjacents, const RopeScaling& scaling, const Fn& fn) {
  const std::vector<double>& frequencies = recent_frequencies(head_dim, scaling);
  for (int64_t first = 0; first < head_dim / 2; first += kRopeMaxPairs) {
    const int count = static_cast<int>(std::min<int64_t>(kRopeMaxPairs, head_dim / 2 - first));
    RopePairs pairs{.head_dim = head_dim,
                    .first = static_cast<int>(first),
                    .count = count,
                    .columns = count / width,
                    .adjacents = adjacents,
                    .frequencies = {}};
    std::copy_n(frequencies.begin() + first, count, pairs.frequencies);
    fn(pairs);
  }
}

// fn.template operator()<T, C, kWidth>(): element type, type of the rotation, elements per access.
template <class Fn>
void with_rope_types(DType dtype, bool fp64, bool vectors, int64_t head_dim, const Fn& fn) {
  with_element(dtype, [&]<class T>(T) {
    constexpr int kWidth = kVectorOf<T>;
    if (fp64 && dtype != DType::kFloat64) {
      fn.template operator()<T, double, 1>();
    } else if (vectors && head_dim % (2 * kWidth) == 0 && head_dim <= 2 * kRopeMaxPairs) {
      fn.template operator()<T, Compute<T>, kWidth>();
    } else {
      fn.template operator()<T, Compute<T>, 1>();
    }
  });
}

}  // namespace xformers::cuda
