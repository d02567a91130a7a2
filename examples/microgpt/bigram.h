// The baseline that a language model has to beat: guess the next byte from the one before it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "examples/microgpt/text.h"

namespace microgpt {

// p(b | a) = (count(a, b) + p(b)) / (count(a) + 1), where p(b) are add-one smoothed byte frequencies: pairs that the
// training text lacks fall back on how common the byte is.
class Bigram {
 public:
  explicit Bigram(const Bytes& train);
  double bits(uint8_t previous, uint8_t next) const;  // -log2 p(next | previous)

 private:
  using Table = std::array<std::array<float, 256>, 256>;
  std::unique_ptr<Table> bits_ = std::make_unique<Table>();
};

}  // namespace microgpt
