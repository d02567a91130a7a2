// How fast memory of a given size can be read and copied, by all of LibTorch's threads.
#pragma once

#include <cstdint>
#include <memory>

namespace xformers::bench {

class BandwidthBuffer {
 public:
  explicit BandwidthBuffer(int64_t bytes);

  void read();  // sums every byte of it once
  void copy();  // one half to the other: bytes / 2 read and bytes / 2 written
  int64_t bytes() const { return words_ * 8; }

 private:
  int64_t words_;
  std::unique_ptr<uint64_t[]> data_;
};

}  // namespace xformers::bench
