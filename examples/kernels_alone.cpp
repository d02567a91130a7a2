// Attention without a framework, on raw pointers: one query, two keys. The softmax weights of scores 0 and log 3 are
// 1/4 and 3/4. Links libxformers_kernels alone: find_package(xformers COMPONENTS kernels), xformers::kernels.
#include <cmath>
#include <cstdio>

#include "xformers/kernels/cpu/attention/attention_cpu.h"

int main() {
  float query[] = {1, 0}, key[] = {0, 5, std::log(3.0f), 7}, value[] = {4, 0, 0, 8}, out[] = {NAN, NAN}, lse[] = {NAN};
  xformers::AttentionFwdParams params;
  params.shape.batch = 1;
  params.shape.seqlen_q = 1;
  params.shape.seqlen_k = 2;
  params.shape.head_dim = params.shape.head_dim_v = 2;
  const auto dense = [](float* data) { return xformers::HeadsTensor{.data = data, .seq_stride = 2}; };
  params.q = dense(query);
  params.k = dense(key);
  params.v = dense(value);
  params.out = dense(out);
  params.lse.data = lse;
  xformers::cpu::attention_forward(params, xformers::cpu::default_threads());
  std::printf("out %g %g, expected 1 6; lse %g, expected %g\n", out[0], out[1], lse[0], std::log(4.0f));
  const bool right =
      std::abs(out[0] - 1) < 1e-5f && std::abs(out[1] - 6) < 1e-5f && std::abs(lse[0] - std::log(4.0f)) < 1e-5f;
  return right ? 0 : 1;
}
