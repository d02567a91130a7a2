#include <algorithm>
#include <array>
#include <compare>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <vector>

#include "xformers/kernels/cuda/base/cuda_check.h"
#include "xformers/kernels/cuda/product/choices.h"
#include "xformers/kernels/cuda/product/cublaslt.h"
#include "xformers/kernels/cuda/product/digest.h"
#include "xformers/kernels/cuda/product/product_cuda.h"
#include "xformers/kernels/params/checks.h"

namespace xformers::cuda {
namespace {

constexpr double kLeastOperations = 2e11;  // a third of a millisecond on an H100: below, launches count for too much
constexpr int kMostProposals = 8, kRounds = 3;
constexpr float kWorthIt = 0.99f;  // of the usual time

// What an algorithm is chosen by, on one device.
struct Shape {
  DType dtype;
  int64_t m, n, k, stride_a, stride_b;
  bool transposed_a, transposed_b, bias;
  auto operator<=>(const Shape&) const = default;
};

Choices<Shape, lt::Algorithm>& choices_of_this_device() {
  static std::vector<Choices<Shape, lt::Algorithm>> all = [] {
    int count = 0;
    XFORMERS_CUDA_CHECK(cudaGetDeviceCount(&count));
    return std::vector<Choices<Shape, lt::Algorithm>>(count);
  }();
  int device = 0;
  XFORMERS_CUDA_CHECK(cudaGetDevice(&device));
  return all[device];
}

bool aligned(const ProductParams& p) {
  const auto fits = [](const void* data, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % 256 == 0 && stride % 8 == 0;
  };
  return fits(p.a.data, p.a.stride) && fits(p.b.data, p.b.stride) && fits(p.bias, p.n);
}

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status{};
  XFORMERS_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

class Event {
 public:
  Event() { XFORMERS_CUDA_CHECK(cudaEventCreate(&event_)); }
  Event(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  void record(cudaStream_t stream) { XFORMERS_CUDA_CHECK(cudaEventRecord(event_, stream)); }
  float since(const Event& begin) const {
    float milliseconds = 0;
    XFORMERS_CUDA_CHECK(cudaEventSynchronize(event_));
    XFORMERS_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin.event_, event_));
    return milliseconds;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// What synchronises would break another thread's capture of a graph, if that is of the strictest kind.
class OutsideCaptures {
 public:
  OutsideCaptures() { exchange(); }
  OutsideCaptures(const OutsideCaptures&) = delete;
  ~OutsideCaptures() { exchange(); }

 private:
  void exchange() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// The fastest way to the usual bits, none for the usual one; leaves the result in params.out.
std::optional<lt::Algorithm> measure(const ProductParams& params, const Stream& on,
                                     const std::function<void()>& usual) {
  const auto stream = static_cast<cudaStream_t>(on.stream);
  const OutsideCaptures outside;
  const LtProduct product(params);
  const std::vector<lt::Algorithm> proposals = product.proposals(kMostProposals);
  const auto run = [&](int way) {
    if (way > 0) return product.run(proposals[way - 1], stream);
    usual();
    return true;
  };
  const int ways = 1 + static_cast<int>(proposals.size());

  auto* const sums = static_cast<uint64_t*>(on.workspace);
  std::array<uint64_t, 1 + kMostProposals> bits{};
  static_assert(sizeof(bits) <= kProductWorkspace);
  std::array<bool, 1 + kMostProposals> agrees{};
  for (int way = ways - 1; way >= 0; --way) {  // the usual one last: what comes after it leaves its bits
    agrees[way] = run(way);
    digest(params.out, params.m * params.n * static_cast<int64_t>(size_of(params.dtype)), sums + way, stream);
  }
  XFORMERS_CUDA_CHECK(cudaMemcpyAsync(bits.data(), sums, ways * sizeof(uint64_t), cudaMemcpyDeviceToHost, stream));
  XFORMERS_CUDA_CHECK(cudaStreamSynchronize(stream));
  for (int way = 0; way < ways; ++way) agrees[way] = agrees[way] && bits[way] == bits[0];

  std::array<std::array<float, kRounds>, 1 + kMostProposals> times{};
  Event begin, end;
  for (int round = 0; round < kRounds; ++round) {
    for (int way = 0; way < ways; ++way) {
      if (!agrees[way]) continue;
      begin.record(stream);
      run(way);
      end.record(stream);
      times[way][round] = end.since(begin);
    }
  }
  const auto median = [&](int way) {
    std::sort(times[way].begin(), times[way].end());
    return times[way][kRounds / 2];
  };
  int best = 0;
  float least = kWorthIt * median(0);
  for (int way = 1; way < ways; ++way) {
    if (!agrees[way] || median(way) >= least) continue;
    best = way;
    least = median(way);
  }
  return best == 0 ? std::nullopt : std::optional(proposals[best - 1]);
}

}  // namespace

bool may_choose_product(const ProductParams& p) {
  static const bool allowed = [] {
    const char* const value = std::getenv("XFORMERS_MEASURE_PRODUCTS");
    return !value || std::string_view(value) != "0";
  }();
  const double operations = 2.0 * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
  return operations >= kLeastOperations && allowed && aligned(p) && lt::library();
}

void product(const ProductParams& p, const Stream& on, const std::function<void()>& usual) {
  check(p);
  const auto stream = static_cast<cudaStream_t>(on.stream);
  const Shape shape{p.dtype, p.m, p.n, p.k, p.a.stride, p.b.stride, p.a.transposed, p.b.transposed, p.bias != nullptr};
  auto& choices = choices_of_this_device();
  const auto advice = choices.ask(shape, !is_capturing(stream));
  if (advice.measure) {
    try {
      choices.tell(shape, measure(p, on, usual));
    } catch (...) {
      choices.tell(shape, std::nullopt);
      throw;
    }
  } else if (!advice.algorithm || !LtProduct(p).run(*advice.algorithm, stream)) {
    usual();
  }
}

}  // namespace xformers::cuda
