#include "xformers/nn/recompute/as_before.h"

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>

#include <algorithm>
#include <mutex>

namespace xformers::nn {
namespace {

constexpr at::DeviceType kAutocastDevices[] = {at::kCPU, at::kCUDA};

at::Tensor state_of(at::Generator& generator) {
  const std::scoped_lock lock(generator.mutex());
  return generator.get_state();
}

}  // namespace

RandomState RandomState::of(at::ArrayRef<at::Device> devices) {
  RandomState state;
  std::vector<at::Device> seen{at::kCPU};
  for (const at::Device device : devices) {
    if (std::find(seen.begin(), seen.end(), device) == seen.end() && device.is_cuda()) seen.push_back(device);
  }
  for (const at::Device device : seen) {
    state.generators_.push_back(at::globalContext().defaultGenerator(device));
    state.states_.push_back(state_of(state.generators_.back()));
  }
  return state;
}

RandomState RandomState::of(at::TensorList tensors) {
  std::vector<at::Device> devices;
  for (const at::Tensor& t : tensors) {
    if (t.defined()) devices.push_back(t.device());
  }
  return of(devices);
}

RandomState RandomState::now() const {
  RandomState state = *this;
  for (size_t i = 0; i < generators_.size(); ++i) state.states_[i] = state_of(state.generators_[i]);
  return state;
}

void RandomState::restore() const {
  for (size_t i = 0; i < generators_.size(); ++i) {
    at::Generator generator = generators_[i];
    const std::scoped_lock lock(generator.mutex());
    generator.set_state(states_[i]);
  }
}

AutocastState AutocastState::now() {
  AutocastState state;
  for (size_t i = 0; i < state.enabled_.size(); ++i) {
    state.enabled_[i] = at::autocast::is_autocast_enabled(kAutocastDevices[i]);
    state.dtype_[i] = at::autocast::get_autocast_dtype(kAutocastDevices[i]);
  }
  state.cache_ = at::autocast::is_autocast_cache_enabled();
  return state;
}

AutocastState AutocastState::without_cache() const {
  AutocastState state = *this;
  state.cache_ = false;
  return state;
}

void AutocastState::restore() const {
  for (size_t i = 0; i < enabled_.size(); ++i) {
    at::autocast::set_autocast_enabled(kAutocastDevices[i], enabled_[i]);
    at::autocast::set_autocast_dtype(kAutocastDevices[i], dtype_[i]);
  }
  at::autocast::set_autocast_cache_enabled(cache_);
}

}  // namespace xformers::nn
