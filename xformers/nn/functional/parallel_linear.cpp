#include "xformers/nn/functional/parallel_linear.h"

#include <ATen/ops/add.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#include "xformers/ops/common/check.h"
#include "xformers/ops/sequence_parallel/sequence_parallel.h"

namespace xformers::nn {
namespace {

at::Tensor plus_bias(const at::Tensor& out, const at::Tensor& bias) { return at::add(out, bias.to(out.scalar_type())); }

std::vector<at::Tensor> column_named(const at::Tensor& x, at::TensorList weights, at::TensorList biases,
                                     std::string_view group, bool gather_output, bool sequence_parallel, bool fuse) {
  return column_parallel_linear(
      {x, weights.vec(), biases.vec(), std::string(group), gather_output, sequence_parallel, fuse});
}

at::Tensor row_named(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                     std::string_view group, bool input_is_parallel, bool sequence_parallel, bool fuse) {
  return row_parallel_linear({x, weight, bias, std::string(group), input_is_parallel, sequence_parallel, fuse});
}

}  // namespace

std::vector<at::Tensor> column_parallel_linear(const ColumnParallelArguments& args) {
  if (!args.biases.empty() && args.biases.size() != args.weights.size()) {
    ops::Check("column_parallel_linear")
        .fail("the number of biases", std::to_string(args.biases.size()),
              std::to_string(args.weights.size()) + ", or 0", "give one for each weight");
  }
  std::vector<at::Tensor> out;
  if (args.sequence_parallel) {
    std::vector<at::Tensor> transposed;
    for (const at::Tensor& w : args.weights) transposed.push_back(w.t());
    out = ops::sequence_parallel_leading_matmul(args.x, transposed, args.fuse_sequence_parallel, args.group);
  } else {
    out = ops::column_parallel_matmul(args.x, args.weights, args.group);
  }
  for (size_t i = 0; i < args.biases.size(); ++i) out[i] = plus_bias(out[i], args.biases[i]);
  if (args.gather_output) {
    for (at::Tensor& t : out) t = ops::gather_columns(t, args.group);
  }
  return out;
}

at::Tensor row_parallel_linear(const RowParallelArguments& args) {
  const at::Tensor x = args.input_is_parallel ? args.x : ops::take_columns(args.x, args.group);
  if (!args.sequence_parallel) {
    const at::Tensor out = ops::sum_over_ranks(at::linear(x, args.weight), args.group);
    return args.bias ? plus_bias(out, *args.bias) : out;
  }
  const at::Tensor out =
      ops::sequence_parallel_trailing_matmul(x, args.weight.t(), args.fuse_sequence_parallel, args.group);
  // Each rank adds it to its own tokens, so its gradient is a sum over ranks.
  return args.bias ? plus_bias(out, ops::copy_to_ranks(*args.bias, args.group)) : out;
}

}  // namespace xformers::nn

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def(
      "column_parallel_linear(Tensor x, Tensor[] weights, Tensor[] biases, str process_group_name, "
      "bool gather_output=False, bool sequence_parallel=False, bool fuse_sequence_parallel=True) -> Tensor[]",
      xformers::nn::column_named);
  m.def(
      "row_parallel_linear(Tensor x, Tensor weight, Tensor? bias, str process_group_name, bool input_is_parallel=True, "
      "bool sequence_parallel=False, bool fuse_sequence_parallel=True) -> Tensor",
      xformers::nn::row_named);
}
