#include "examples/microgpt/dataset.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "examples/microgpt/error.h"

namespace microgpt {
namespace {

at::Tensor to_tensor(const Bytes& bytes) {
  return at::from_blob(const_cast<uint8_t*>(bytes.data()), {static_cast<int64_t>(bytes.size())}, at::kByte).clone();
}

}  // namespace

Dataset::Dataset(const Text& text, int64_t context) : context_(context) {
  const int64_t needed = context + 1;
  const auto train = static_cast<int64_t>(text.train.size()), validation = static_cast<int64_t>(text.validation.size());
  if (train < needed || validation < needed) {
    throw Error(
        fmt::format("the text in {} has {} bytes for training and {} for validation (the last tenth of each "
                    "file), expected at least {} in each.  Fix: pass more text to --text, or a smaller --context",
                    text.source, train, validation, needed));
  }
  train_ = to_tensor(text.train);
  validation_ = to_tensor(text.validation);
}

Batch Dataset::gather(const at::Tensor& text, const std::vector<int64_t>& starts) const {
  const auto windows = static_cast<int64_t>(starts.size());
  const at::Tensor rows = at::empty({windows, context_ + 1}, at::kLong);
  for (int64_t i = 0; i < windows; ++i) rows[i].copy_(text.narrow(0, starts[i], context_ + 1));
  return {rows.narrow(1, 0, context_), rows.narrow(1, 1, context_)};
}

Batch Dataset::train_batch(int64_t windows, uint64_t seed, int64_t step) const {
  std::seed_seq mixed{seed, seed >> 32, static_cast<uint64_t>(step), static_cast<uint64_t>(step) >> 32};
  std::mt19937_64 random(mixed);
  std::uniform_int_distribution<int64_t> place(0, train_.size(0) - context_ - 1);
  std::vector<int64_t> starts(static_cast<size_t>(windows));
  for (int64_t& start : starts) start = place(random);
  return gather(train_, starts);
}

Batch Dataset::validation_batch(int64_t windows) const {
  const int64_t places = (validation_.size(0) - 1) / context_;  // windows side by side
  windows = std::min(windows, places);
  std::vector<int64_t> starts;
  for (int64_t i = 0; i < windows; ++i) starts.push_back(i * places / windows * context_);
  return gather(validation_, starts);
}

double bigram_bits_per_byte(const Bigram& bigram, const Batch& batch) {
  const at::Tensor input = batch.input.contiguous(), next = batch.next.contiguous();
  const int64_t* previous = input.const_data_ptr<int64_t>();
  const int64_t* following = next.const_data_ptr<int64_t>();
  double bits = 0;
  for (int64_t i = 0; i < input.numel(); ++i) {
    bits += bigram.bits(static_cast<uint8_t>(previous[i]), static_cast<uint8_t>(following[i]));
  }
  return bits / static_cast<double>(input.numel());
}

}  // namespace microgpt
