// Copies of host memory on the GPU: every range in memory of its own, as large as it is, so that memcheck sees what
// leaves it.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace xformers::testing {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t bytes) { check(cudaMalloc(&data_, std::max<size_t>(bytes, 1)), "cudaMalloc"); }
  ~DeviceBuffer() { cudaFree(data_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  char* data() const { return static_cast<char*>(data_); }

 private:
  void* data_ = nullptr;
};

// Copies of host ranges in device memory; ranges that overlap share one copy.
class DeviceMirror {
 public:
  void add(const void* host, size_t bytes) {
    if (host && bytes > 0) ranges_.emplace_back(reinterpret_cast<uintptr_t>(host), bytes);
  }
  void upload() {
    std::sort(ranges_.begin(), ranges_.end());
    for (const auto& [begin, bytes] : ranges_) {
      if (!copies_.empty() && begin < copies_.rbegin()->first + copies_.rbegin()->second.bytes) {
        Copy& last = copies_.rbegin()->second;
        last.bytes = std::max(last.bytes, begin + bytes - copies_.rbegin()->first);
      } else {
        copies_[begin].bytes = bytes;
      }
    }
    for (auto& [begin, copy] : copies_) {
      copy.buffer = std::make_unique<DeviceBuffer>(copy.bytes);
      check(cudaMemcpy(copy.buffer->data(), reinterpret_cast<void*>(begin), copy.bytes, cudaMemcpyHostToDevice),
            "upload");
    }
  }
  void download() {
    for (auto& [begin, copy] : copies_) {
      check(cudaMemcpy(reinterpret_cast<void*>(begin), copy.buffer->data(), copy.bytes, cudaMemcpyDeviceToHost),
            "download");
    }
  }
  template <class T>
  void translate(T*& pointer) const {
    if (!pointer) return;
    const auto host = reinterpret_cast<uintptr_t>(pointer);
    auto next = copies_.upper_bound(host);
    if (next != copies_.begin()) {
      const auto& [begin, copy] = *--next;
      if (host < begin + copy.bytes) return void(pointer = reinterpret_cast<T*>(copy.buffer->data() + (host - begin)));
    }
    pointer = reinterpret_cast<T*>(nothing_.data());
  }

 private:
  struct Copy {
    size_t bytes = 0;
    std::unique_ptr<DeviceBuffer> buffer;
  };
  DeviceBuffer nothing_{0};  // where arrays without elements lie: their pointers are not null either
  std::vector<std::pair<uintptr_t, size_t>> ranges_;
  std::map<uintptr_t, Copy> copies_;
};

}  // namespace xformers::testing
