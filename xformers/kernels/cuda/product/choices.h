// Which algorithm each shape of product takes on one device, and which shape may be measured now. Plain C++.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <set>

namespace xformers::cuda {

// Shape: ordered by <. May be asked by any threads; nothing of the caller's runs under its lock.
template <class Shape, class Algorithm>
class Choices {
 public:
  static constexpr size_t kMostMeasured = 64;  // each takes about 30 times the product
  static constexpr size_t kMostSeen = 1024;    // of shapes that wait for their second call; more are forgotten together

  struct Advice {
    bool measure = false;                // the caller measures this shape, and calls tell()
    std::optional<Algorithm> algorithm;  // none: the usual
  };

  // The second call of a shape measures it if it may, unless another one is being measured: two at a time would disturb
  // each other.
  Advice ask(const Shape& shape, bool may_measure) {
    const std::lock_guard lock(mutex_);
    if (const auto found = measured_.find(shape); found != measured_.end()) return {false, found->second};
    if (!seen_.contains(shape)) {
      if (seen_.size() == kMostSeen) seen_.clear();
      seen_.insert(shape);
      return {};
    }
    if (!may_measure || measuring_ || measured_.size() == kMostMeasured) return {};
    measured_.emplace(shape, std::nullopt);  // whoever comes meanwhile takes the usual one
    seen_.erase(shape);
    measuring_ = true;
    return {true, std::nullopt};
  }

  void tell(const Shape& shape, const std::optional<Algorithm>& algorithm) {
    const std::lock_guard lock(mutex_);
    measured_[shape] = algorithm;
    measuring_ = false;
  }

 private:
  std::mutex mutex_;
  std::set<Shape> seen_;
  std::map<Shape, std::optional<Algorithm>> measured_;
  bool measuring_ = false;
};

}  // namespace xformers::cuda
