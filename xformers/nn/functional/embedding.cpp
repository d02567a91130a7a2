#include "xformers/nn/functional/embedding.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include <cmath>

#include "xformers/ops/bias_act_dropout/bias_act_dropout.h"
#include "xformers/ops/common/check.h"

namespace xformers::nn::functional {
namespace {

using ops::Check;
using ops::describe;
using ops::OptionalTensor;

// [batch, seqlen, dim]; one value per token broadcasts.
at::Tensor with_features(const Check& check, const at::Tensor& x) {
  if (x.dim() == 2) return x.unsqueeze(-1);
  check.dims("x", x, 3, "[batch, seqlen, dim] or [batch, seqlen]");
  return x;
}

}  // namespace

at::Tensor sine_embedding(const at::Tensor& x_arg, int64_t dim_model) {
  const Check check("sine_embedding");
  if (dim_model < 1) check.fail("dim_model", std::to_string(dim_model), "at least 1", "pass the width of the model");
  const at::Tensor x = with_features(check, x_arg);
  const at::ScalarType dtype = x.is_floating_point() ? x.scalar_type() : at::kFloat;
  const auto options = x.options().dtype(at::kDouble).requires_grad(false);
  const at::Tensor pairs = at::arange((dim_model + 1) / 2, options);
  const at::Tensor frequencies = at::pow(10000.0, pairs * (-2.0 / static_cast<double>(dim_model)));
  const at::Tensor angles = at::arange(x.sym_size(1), options).unsqueeze(1) * frequencies;  // [seqlen, pairs]
  const at::Tensor pe = at::stack({at::sin(angles), at::cos(angles)}, -1).flatten(1).narrow(1, 0, dim_model);
  return x + pe.to(dtype);
}

at::Tensor vocab_embedding(const at::Tensor& ids, const at::Tensor& words, const at::Tensor& positions, double p) {
  const Check check("vocab_embedding");
  if (ids.scalar_type() != at::kLong && ids.scalar_type() != at::kInt) {
    check.fail("ids.dtype", ops::describe_dtype(ids.scalar_type()), "int32 or int64", "pass numbers of words");
  }
  check.dims("ids", ids, 2, "[batch, seqlen]");
  check.dims("words", words, 2, "[vocab_size, dim]");
  check.dims("positions", positions, 2, "[seq_len, dim]");
  if (ids.sym_size(1) > positions.sym_size(0)) {
    check.fail("ids", describe(ids), "at most " + c10::str(positions.sym_size(0)) + " words, the layer's seq_len",
               "cut the sequence, or build the layer with a larger seq_len");
  }
  const at::Tensor sum = at::embedding(words, ids) + positions.narrow_symint(0, 0, ids.sym_size(1));
  return p > 0 ? ops::elementwise_dropout(sum, p) : sum;
}

at::Tensor learnable_embedding(const at::Tensor& x_arg, const at::Tensor& positions,
                               const OptionalTensor& class_token) {
  const Check check("learnable_embedding");
  at::Tensor x = with_features(check, x_arg);
  check.dims("positions", positions, 3, "[1, seq_len, dim]");
  if (class_token) {
    const c10::SymInt dim = positions.sym_size(2);
    x = at::cat({class_token->reshape_symint({1, 1, dim}).expand_symint({x.sym_size(0), 1, dim}).to(x.dtype()),
                 x.expand_symint({x.sym_size(0), x.sym_size(1), dim})},
                1);
  }
  if (x.sym_size(1) > positions.sym_size(1)) {
    check.fail("x", describe(x_arg),
               "at most " + c10::str(positions.sym_size(1) - (class_token ? 1 : 0)) + " tokens, the layer's seq_len",
               "cut the sequence, or build the layer with a larger seq_len");
  }
  return x + positions.narrow_symint(1, 0, x.sym_size(1));
}

at::Tensor simplicial_embedding(const at::Tensor& x, int64_t chunks, std::optional<double> temperature) {
  const Check check("simplicial_embedding");
  check.floating("x", x);
  if (chunks < 1 || x.dim() < 1 || x.sym_size(-1) % chunks != 0) {
    check.fail("x", describe(x), "a last dimension that is a multiple of L = " + std::to_string(chunks),
               "choose an L that divides it");
  }
  if (temperature && !(*temperature > 0)) {
    check.fail("temperature", std::to_string(*temperature), "a positive number", "leave it out for 1");
  }
  const at::Tensor scaled = temperature ? x / *temperature : x;
  return at::softmax(scaled.unflatten(-1, {chunks, -1}), -1).flatten(-2);
}

int64_t grid_side(const char* where, const at::Tensor& tokens) {
  Check(where).dims("x", tokens, 3, "[batch, seqlen, channels]");
  const int64_t count = tokens.size(1), side = std::llround(std::sqrt(static_cast<double>(count)));
  if (side * side == count) return side;
  Check(where).fail("the number of tokens", std::to_string(count), "a square, since they are those of a square grid",
                    "pad the sequence, or choose a layer without requires_squared_context");
}

at::Tensor grid_of(const char* where, const at::Tensor& tokens) {
  const int64_t side = grid_side(where, tokens);
  return tokens.unflatten(1, {side, side}).permute({0, 3, 1, 2});
}
at::Tensor tokens_to_grid(const at::Tensor& x) { return x.dim() == 4 ? x : grid_of("tokens_to_grid", x); }

at::Tensor grid_to_tokens(const at::Tensor& x) {
  Check("grid_to_tokens").dims("x", x, 4, "[batch, channels, height, width]");
  return x.permute({0, 2, 3, 1}).flatten(1, 2);
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("sine_embedding(Tensor x, int dim_model) -> Tensor", tags);
  m.def("vocab_embedding(Tensor ids, Tensor words, Tensor positions, float p=0.0) -> Tensor", tags);
  m.def("learnable_embedding(Tensor x, Tensor positions, Tensor? class_token=None) -> Tensor", tags);
  m.def("simplicial_embedding(Tensor x, int chunks, float? temperature=None) -> Tensor", tags);
  m.def("tokens_to_grid(Tensor x) -> Tensor", tags);
  m.def("grid_to_tokens(Tensor x) -> Tensor", tags);
}
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  m.impl("sine_embedding", xformers::nn::functional::sine_embedding);
  m.impl("vocab_embedding", xformers::nn::functional::vocab_embedding);
  m.impl("learnable_embedding", xformers::nn::functional::learnable_embedding);
  m.impl("simplicial_embedding", xformers::nn::functional::simplicial_embedding);
  m.impl("tokens_to_grid", xformers::nn::functional::tokens_to_grid);
  m.impl("grid_to_tokens", xformers::nn::functional::grid_to_tokens);
}
TORCH_LIBRARY_IMPL(xformers, FuncTorchVmapMode, m) {
  m.impl("vocab_embedding", xformers::nn::functional::vocab_embedding);
}
