// Schemas, public functions and checks.
#include "xformers/ops/softmax/softmax.h"

#include "xformers/ops/softmax/softmax_op.h"

namespace xformers::ops {
namespace {

bool broadcasts_to(const at::Tensor& mask, const at::Tensor& x) {
  if (mask.dim() > x.dim()) return false;
  for (int64_t i = 1; i <= mask.dim(); ++i) {
    if (mask.sym_size(-i) != 1 && mask.sym_size(-i) != x.sym_size(-i)) return false;
  }
  return true;
}

}  // namespace

void check_softmax(const char* where, const at::Tensor& x, const OptionalTensor& mask, bool causal) {
  const Check check(where);
  check.floating("x", x);
  if (x.dim() < 1) check.fail("x", describe(x), "at least one dimension", "pass [..., columns]");
  if (causal && x.dim() < 2)
    check.fail("x", describe(x), "[..., rows, columns] where causal", "give it two dimensions");
  if (!mask) return;
  check.same_dtype("mask", *mask, x, "x");
  check.same_device("mask", *mask, x, "x");
  if (!broadcasts_to(*mask, x)) {
    check.fail("mask", describe(*mask), "a shape that broadcasts to " + describe_shape(x.sym_sizes()),
               "its dimensions, counted from the last, are 1 or those of x");
  }
}

void SoftmaxBackward::check() const {
  check_softmax(kName, out, std::nullopt, causal);
  Check(kName).like("grad_out", grad_out, out, "out", "it has the shape of the result");
}

at::Tensor softmax(const at::Tensor& x, const OptionalTensor& mask, bool causal) {
  return call(Softmax{x, mask, causal});
}

at::Tensor log_softmax(const at::Tensor& x, const OptionalTensor& mask, bool causal) {
  return call(LogSoftmax{x, mask, causal});
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<Softmax, LogSoftmax, SoftmaxBackward>(m);
}
