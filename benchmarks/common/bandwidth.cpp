#include "benchmarks/common/bandwidth.h"

#include <ATen/Parallel.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <cstring>

namespace xformers::bench {
namespace {

std::atomic<uint64_t> sink;  // keeps the sums alive

// Four streams in parallel keep more cache lines under way than one.
#if defined(__x86_64__)
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), optimize("O3")))
#endif
uint64_t
sum_words(const uint64_t* data, int64_t count) {
  const int64_t quarter = count / 4;
  const uint64_t *a = data, *b = a + quarter, *c = b + quarter, *d = c + quarter;
  uint64_t sum_a = 0, sum_b = 0, sum_c = 0, sum_d = 0;
  for (int64_t i = 0; i < quarter; ++i) {
    sum_a += a[i];
    sum_b += b[i];
    sum_c += c[i];
    sum_d += d[i];
  }
  for (int64_t i = 4 * quarter; i < count; ++i) sum_a += data[i];
  return sum_a + sum_b + sum_c + sum_d;
}

// fn(begin, end) on every thread's share of [0, count).
template <class Fn>
void share(int64_t count, Fn fn) {
  const int64_t threads = at::get_num_threads(), part = (count + threads - 1) / threads;
  struct Context {
    Fn& fn;
    int64_t count, part;
  } context{fn, count, part};
  torch_parallel_for(
      0, threads, 1,
      [](int64_t begin, int64_t end, void* opaque) {
        auto& c = *static_cast<Context*>(opaque);
        for (int64_t i = begin; i < end; ++i) c.fn(std::min(i * c.part, c.count), std::min((i + 1) * c.part, c.count));
      },
      &context);
}

}  // namespace

BandwidthBuffer::BandwidthBuffer(int64_t bytes) : words_(bytes / 8), data_(new uint64_t[words_]) {
  share(words_, [this](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) data_[i] = static_cast<uint64_t>(i);
  });
}

void BandwidthBuffer::read() {
  share(words_, [this](int64_t begin, int64_t end) { sink += sum_words(data_.get() + begin, end - begin); });
}

void BandwidthBuffer::copy() {
  const int64_t half = words_ / 2;
  share(half, [this, half](int64_t begin, int64_t end) {
    std::memcpy(data_.get() + half + begin, data_.get() + begin, static_cast<size_t>(end - begin) * 8);
  });
}

}  // namespace xformers::bench
