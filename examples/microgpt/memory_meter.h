// What LibTorch allocates while the object lives: the most at one moment beyond what was there, on all devices.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <atomic>
#include <memory>

namespace microgpt {

class MemoryMeter {
 public:
  int64_t peak_bytes() const { return reports_->peak; }

 private:
  // LibTorch's allocators report to it, on whatever thread backward runs.
  struct Reports final : c10::MemoryReportingInfoBase {
    void reportMemoryUsage(void*, int64_t change, size_t, size_t, c10::Device) override {
      const int64_t total = now += change;
      int64_t before = peak;
      while (total > before && !peak.compare_exchange_weak(before, total)) {
      }
    }
    bool memoryProfilingEnabled() const override { return true; }
    std::atomic<int64_t> now{0}, peak{0};
  };

  std::shared_ptr<Reports> reports_ = std::make_shared<Reports>();
  c10::DebugInfoGuard guard_{c10::DebugInfoKind::PROFILER_STATE, reports_};
};

}  // namespace microgpt
