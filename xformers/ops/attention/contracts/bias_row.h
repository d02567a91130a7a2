// The bias classes by name, and what operators ask about them.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace xformers::ops {

// The operators that take some biases only, one bit each.
enum Takers : uint32_t {
  kCutlassF = 1 << 0,
  kCutlassB = 1 << 1,
  kFlashF = 1 << 2,
  kFlashB = 1 << 3,
  kFlash3F = 1 << 4,
  kFlash3B = 1 << 5,
  kSplitKF = 1 << 6,
  kCkF = 1 << 7,
  kCkB = 1 << 8,
  kCkDecoderF = 1 << 9,  // both of them
  kNoneOfThem = 1 << 10,
  kEvery = ~uint32_t{0},
};

enum BiasFacts : uint32_t {
  kTopLeft = 1 << 0,     // causal from the top-left corner
  kPackedKeys = 1 << 1,  // one after the other
  kPaged = 1 << 2,
};

struct BiasRow {
  const char* name;    // of the class
  uint32_t taken_by;   // Takers
  uint32_t facts = 0;  // BiasFacts

  bool operator==(std::string_view other) const { return other == name; }
};

std::span<const BiasRow> bias_rows();
// Exactly these classes: nullptr for one that a user derived, which has a name of its own.
const BiasRow* find_bias(std::string_view name);

}  // namespace xformers::ops
