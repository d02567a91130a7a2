// What a layer that is run again in backward must find as it was: random numbers and autocast.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <array>
#include <vector>

namespace xformers::nn {

// The states of the CPU's default generator and of those of some devices.
class RandomState {
 public:
  static RandomState of(at::ArrayRef<at::Device> devices);
  // Of the devices that these are on; undefined ones are on none.
  static RandomState of(at::TensorList tensors);
  // What the generators are now.
  RandomState now() const;
  void restore() const;

 private:
  std::vector<at::Generator> generators_;
  std::vector<at::Tensor> states_;
};

// Autocast on the CPU and on GPUs.
class AutocastState {
 public:
  static AutocastState now();
  void restore() const;
  // The same without memory of weights that were cast: a cast made without gradients must not serve where they are
  // recorded.
  AutocastState without_cache() const;

 private:
  std::array<bool, 2> enabled_{};
  std::array<at::ScalarType, 2> dtype_{};
  bool cache_ = false;
};

// While it lives, autocast is what it was, without its memory of weights; and random numbers are, where asked for.
class AsBefore {
 public:
  explicit AsBefore(const AutocastState& autocast) { autocast.without_cache().restore(); }
  AsBefore(const AutocastState& autocast, const RandomState& random) : AsBefore(autocast) {
    random_ = random.now();
    random.restore();
  }
  AsBefore(const AsBefore&) = delete;
  AsBefore& operator=(const AsBefore&) = delete;
  ~AsBefore() {
    random_.restore();
    autocast_.restore();
  }

 private:
  AutocastState autocast_ = AutocastState::now();
  RandomState random_;
};

}  // namespace xformers::nn
