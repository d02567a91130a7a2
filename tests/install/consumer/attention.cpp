// Causal attention through the installed library, against the plain formula.
#include "xformers/ops/attention/attention.h"

#include <ATen/ATen.h>

#include <iostream>
#include <limits>

int main() {
  const auto query = at::randn({2, 33, 3, 16}), key = at::randn({2, 33, 3, 16}), value = at::randn({2, 33, 3, 16});
  const auto out = xformers::ops::memory_efficient_attention(query, key, value, xformers::ops::LowerTriangularMask{});

  const auto heads_first = [](const at::Tensor& x) { return x.transpose(1, 2).to(at::kDouble); };
  const auto mask = at::full({33, 33}, -std::numeric_limits<double>::infinity(), at::kDouble).triu(1);
  const auto scores = at::matmul(heads_first(query), heads_first(key).transpose(-2, -1)) / 4.0 + mask;
  const auto expected = at::matmul(scores.softmax(-1), heads_first(value)).transpose(1, 2);

  const double error = (out.to(at::kDouble) - expected).abs().max().item<double>();
  std::cout << "max error " << error << "\n";
  return error < 1e-5 ? 0 : 1;
}
