// Windows of text for training and validation.
#pragma once

#include <ATen/core/Tensor.h>

#include "examples/microgpt/bigram.h"
#include "examples/microgpt/text.h"

namespace microgpt {

// next[i] is the byte that follows input[i]; both int64 [windows, context].
struct Batch {
  at::Tensor input, next;
};

class Dataset {
 public:
  // Throws Error where the text is too short for one window in each part.
  Dataset(const Text& text, int64_t context);

  // Windows at random places of the training text. They depend on (seed, step) alone, so a resumed run sees what the
  // uninterrupted one would have seen.
  Batch train_batch(int64_t windows, uint64_t seed, int64_t step) const;

  // The same windows on every call: as many as asked for and possible, spread evenly, without overlap.
  Batch validation_batch(int64_t windows) const;

 private:
  Batch gather(const at::Tensor& text, const std::vector<int64_t>& starts) const;

  int64_t context_;
  at::Tensor train_, validation_;  // uint8 [bytes]
};

// Mean of -log2 p over the batch, in bits per byte.
double bigram_bits_per_byte(const Bigram& bigram, const Batch& batch);

}  // namespace microgpt
