#include "xformers/kernels/cpu/rope/rope_cpu.h"

#include <cmath>
#include <string>
#include <vector>

#include "xformers/kernels/base/error.h"
#include "xformers/kernels/cpu/rope/isa_kernels.h"

namespace xformers::cpu {
namespace {

constexpr double kTwoPi = 6.283185307179586476925;

// Wavelengths above old_context_len / low_freq_factor are stretched by scale_factor, those below old_context_len /
// high_freq_factor stay, those between are interpolated.
double stretched(double frequency, const RopeScaling& s) {
  const double wavelength = kTwoPi / frequency;
  if (wavelength < s.old_context_len / s.high_freq_factor) return frequency;
  if (wavelength > s.old_context_len / s.low_freq_factor) return frequency / s.scale_factor;
  const double smooth = (s.old_context_len / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
  return (1 - smooth) * frequency / s.scale_factor + smooth * frequency;
}

std::vector<double> frequencies_of(int64_t head_dim, const RopeScaling& scaling) {
  std::vector<double> frequencies(head_dim / 2);
  for (int64_t j = 0; j < head_dim / 2; ++j) {
    const double frequency = std::pow(scaling.theta, -2.0 * static_cast<double>(j) / static_cast<double>(head_dim));
    frequencies[j] = (scaling.dynamic ? stretched(frequency, scaling) : frequency) / scaling.linear_scale;
  }
  return frequencies;
}

void check_head_dim(int64_t head_dim) {
  if (head_dim >= 2 && head_dim % 2 == 0) return;
  throw Error("rope: head_dim is " + std::to_string(head_dim) +
              ", expected an even number.  Fix: elements are turned in pairs; pad the head by one.");
}

[[noreturn]] void fail(const std::string& name, int64_t b, const std::string& got, const std::string& expected,
                       const char* fix) {
  throw Error("rope_padded: " + name + " of sequence " + std::to_string(b) + " is " + got + ", expected " + expected +
              ".  Fix: " + fix + ".");
}

void check_sequences(const RopePaddedParams& p) {
  if (p.num_queries == 0 && p.batch == 0) return;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t begin = p.q_starts[b], end = p.q_starts[b + 1], start = p.k_starts[b], length = p.k_lengths[b];
    if (begin < 0 || end < begin || end > p.num_queries || (b == 0 && begin != 0)) {
      fail("queries", b, std::to_string(begin) + " to " + std::to_string(end),
           "rising offsets from 0 to " + std::to_string(p.num_queries), "see the bias's q_seqinfo");
    }
    if (length < end - begin) {
      fail("key length", b, std::to_string(length), "at least its " + std::to_string(end - begin) + " queries",
           "the keys in use include the new ones");
    }
    if (start < 0 || start + length > p.num_keys) {
      fail("keys", b, std::to_string(start) + " to " + std::to_string(start + length),
           "a range in [0, " + std::to_string(p.num_keys) + "]", "see the bias's k_seqinfo");
    }
  }
  const int64_t covered = p.batch > 0 ? p.q_starts[p.batch] : 0;
  if (covered != p.num_queries) {
    throw Error("rope_padded: the last query offset is " + std::to_string(covered) + ", expected " +
                std::to_string(p.num_queries) + ".  Fix: pass the bias that these queries were packed with.");
  }
}

}  // namespace

void rope_padded(const RopePaddedParams& params, const Threads& threads) {
  check_head_dim(params.head_dim);
  check_sequences(params);
  const std::vector<double> frequencies = frequencies_of(params.head_dim, params.scaling);
  XFORMERS_BY_ISA(rope_padded)(params, frequencies.data(), threads);
}

void rotary(const RotaryParams& params, const Threads& threads) {
  check_head_dim(params.head_dim);
  if (params.outer == 0 || params.seqlen == 0) return;
  const std::vector<double> frequencies = frequencies_of(params.head_dim, params.scaling);
  XFORMERS_BY_ISA(rotary)(params, frequencies.data(), threads);
}

}  // namespace xformers::cpu
