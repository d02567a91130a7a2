// The products with gradients: schemas, checks, execution, gradients, autocast.
#include "xformers/ops/sequence_parallel/sequence_parallel.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "xformers/ops/common/operator_node.h"
#include "xformers/ops/common/product.h"
#include "xformers/ops/sequence_parallel/products.h"
#include "xformers/ops/tiled_matmul/tiled_matmul.h"

namespace xformers::ops {
namespace {

constexpr char kLeading[] = "sequence_parallel_leading_matmul", kTrailing[] = "sequence_parallel_trailing_matmul",
               kColumn[] = "column_parallel_matmul";

std::string describe_all(at::TensorList tensors) {
  std::string text;
  for (const at::Tensor& t : tensors) text += (text.empty() ? "" : ", ") + describe(t);
  return text;
}

void check_factor(const Check& check, const char* name, const at::Tensor& w, const at::Tensor& x, const char* x_name,
                  const c10::SymInt& k, int64_t dim_of_k) {
  check.dims(name, w, 2, dim_of_k == 0 ? "[in, out]" : "[out, in]");
  check.equal((std::string(name) + ".size(" + std::to_string(dim_of_k) + ")").c_str(), w.sym_size(dim_of_k), k,
              "a weight has a row or column for each feature of the input");
  check.same_dtype(name, w, x, x_name);
  check.same_device(name, w, x, x_name);
}

void check_rows(const Check& check, const char* name, const c10::SymInt& rows, int64_t ranks) {
  if (rows % ranks != 0) {
    check.fail(name, std::to_string(rows.guard_int(__FILE__, __LINE__)),
               "a multiple of the number of ranks, " + std::to_string(ranks), "pad the sequence");
  }
}

// ---- leading: all-gather, then product ----
struct LeadingMatmul {
  static constexpr const char* kName = "sequence_parallel_leading_matmul_fwd";
  using Result = std::vector<at::Tensor>;
  at::Tensor scattered_input;
  at::TensorList weights{};
  bool fuse = true;
  std::string_view process_group_name{};

  static constexpr auto arguments() {
    using A = LeadingMatmul;
    return std::tuple{arg("scattered_input", &A::scattered_input), arg("weights", &A::weights),
                      arg("fuse", &A::fuse).required(), arg("process_group_name", &A::process_group_name).required()};
  }
  void check() const {
    const Check check(kLeading);
    check.dims("scattered_input", scattered_input, 2, "[tokens / ranks, in]");
    check.floating("scattered_input", scattered_input);
    for (const at::Tensor& w : weights) {
      check_factor(check, "weight", w, scattered_input, "scattered_input", scattered_input.sym_size(1), 0);
    }
  }
  Result empty() const {
    const Group group(kLeading, process_group_name);
    Result out;
    for (const at::Tensor& w : weights) {
      out.push_back(empty_result({scattered_input.sym_size(0) * group.size, w.sym_size(1)}, scattered_input.options()));
    }
    return out;
  }
};

struct LeadingBackward {
  static constexpr const char* kName = "sequence_parallel_leading_matmul_bwd";
  using Result = std::vector<at::Tensor>;  // of the input, then of the weights
  at::Tensor scattered_input;
  at::TensorList weights{}, grad_gathered_outputs{};
  bool fuse = true;
  std::string_view process_group_name{};
  bool need_input = true, need_weights = true;

  static constexpr auto arguments() {
    using A = LeadingBackward;
    return std::tuple{arg("scattered_input", &A::scattered_input),
                      arg("weights", &A::weights),
                      arg("grad_gathered_outputs", &A::grad_gathered_outputs),
                      arg("fuse", &A::fuse).required(),
                      arg("process_group_name", &A::process_group_name).required(),
                      arg("need_input", &A::need_input),
                      arg("need_weights", &A::need_weights)};
  }
  void check() const {
    LeadingMatmul{scattered_input, weights, fuse, process_group_name}.check();
    const Check check(kLeading);
    const Group group(kLeading, process_group_name);
    if (grad_gathered_outputs.size() != weights.size()) {
      check.fail("the number of gradients", std::to_string(grad_gathered_outputs.size()),
                 std::to_string(weights.size()), "give one for each weight");
    }
    for (size_t i = 0; i < weights.size(); ++i) {
      check.shape("grad_gathered_outputs", grad_gathered_outputs[i],
                  {scattered_input.sym_size(0) * group.size, weights[i].sym_size(1)}, "those of the outputs");
    }
  }
  Result empty() const {
    Result out{empty_result(scattered_input, need_input)};
    for (const at::Tensor& w : weights) out.push_back(empty_result(w, need_weights));
    return out;
  }
};

std::vector<at::Tensor> leading_forward(const LeadingMatmul& args) {
  args.check();
  const auto& [x, weights, fuse, name] = args;
  const Group group(kLeading, name);
  group.check_same_call(
      "(input " + describe(x) + ", weights " + describe_all(weights) + ", fuse " + (fuse ? "true)" : "false)"),
      x.device());
  std::vector<Factor> factors;
  for (const at::Tensor& w : weights) factors.push_back({w});
  std::vector<at::Tensor> out = args.empty();
  if (!out.empty()) gather_and_multiply(group, x, factors, out, {.fuse = fuse});
  return out;
}

// The gather of x runs beside the product for grad_x, whose sum over ranks runs beside the products for grad_w. Whole
// products, so neither is split and every sum over tokens is rounded once.
std::vector<at::Tensor> leading_backward(const LeadingBackward& args) {
  constexpr const char *kGathering = "gathering the input", *kSumming = "summing the input's gradient";
  args.check();
  const Group group(kLeading, args.process_group_name);
  group.check_same_call(" backward(input " + describe(args.scattered_input) + ", weights " +
                            describe_all(args.weights) + ", gradients wanted: " + (args.need_input ? "input" : "") +
                            (args.need_weights ? " weights)" : ")"),
                        args.scattered_input.device());
  if (args.weights.empty()) return {at::zeros_like(args.scattered_input)};
  std::vector<at::Tensor> result = args.empty();
  std::vector<at::Tensor> grads;
  for (const at::Tensor& grad : args.grad_gathered_outputs) grads.push_back(grad.contiguous());
  at::Tensor gathered, moved;
  if (args.need_weights) gathered = group.start_gather(kGathering, args.scattered_input);
  if (args.need_input) {
    TileGrid transposed;
    for (const at::Tensor& w : args.weights) transposed.push_back({w.t()});
    moved = start_sum_of_rows(group, kSumming, tiled_matmul({grads}, transposed)[0][0]);
  }
  if (args.need_weights) {
    group.wait(kGathering, gathered);
    for (size_t i = 0; i < grads.size(); ++i) result[1 + i] = product(gathered.t(), grads[i]);
  }
  if (args.need_input) result[0] = finish_sum_of_rows(group, kSumming, moved);
  return result;
}

std::vector<at::Tensor> defined_gradients(const variable_list& grads, const at::Tensor& like,
                                          const std::vector<c10::SymInt>& rows, at::TensorList weights, int64_t dim) {
  std::vector<at::Tensor> all;
  for (size_t i = 0; i < grads.size(); ++i) {
    all.push_back(grads[i].defined() ? grads[i] : like.new_zeros_symint({rows[0], weights[i].sym_size(dim)}));
  }
  return all;
}

struct LeadingKept {
  static constexpr const char* kNode = "XformersSequenceParallelLeadingBackward";
  at::Tensor x;
  std::vector<at::Tensor> weights{};
  std::vector<c10::SymInt> rows{};  // of the outputs
  bool fuse = true;
  int64_t group = 0;
  static constexpr auto members() {
    using K = LeadingKept;
    return std::tuple{&K::x, &K::weights, &K::rows, &K::fuse, &K::group};
  }
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    const std::vector<at::Tensor> all = defined_gradients(grads, x, rows, weights, 1);
    const bool any_weight = std::find(wanted.inputs.begin() + 1, wanted.inputs.end(), true) != wanted.inputs.end();
    variable_list result = call(LeadingBackward{x, weights, all, fuse, group_of_number(group), wanted[0], any_weight});
    for (size_t i = 0; i < result.size(); ++i) {
      if (!wanted[i]) result[i] = at::Tensor();
    }
    return result;
  }
};

std::vector<at::Tensor> leading_autograd(const LeadingMatmul& args) {
  args.check();
  const auto node = record<LeadingKept>(args.scattered_input, args.weights);
  std::vector<at::Tensor> out = below_autograd(args);
  if (!node) return out;
  for (at::Tensor& t : out) t = with_history(std::move(t), node);
  const Group group(kLeading, args.process_group_name);
  node->keep({args.scattered_input,
              args.weights.vec(),
              {args.scattered_input.sym_size(0) * group.size},
              args.fuse,
              number_of_group(args.process_group_name)});
  return out;
}

// ---- trailing: product, then reduce-scatter ----
struct TrailingMatmul {
  static constexpr const char* kName = "sequence_parallel_trailing_matmul_fwd";
  using Result = at::Tensor;
  at::Tensor gathered_input, weight;
  bool fuse = true;
  std::string_view process_group_name{};

  static constexpr auto arguments() {
    using A = TrailingMatmul;
    return std::tuple{arg("gathered_input", &A::gathered_input), arg("weight", &A::weight),
                      arg("fuse", &A::fuse).required(), arg("process_group_name", &A::process_group_name).required()};
  }
  void check() const {
    const Check check(kTrailing);
    const Group group(kTrailing, process_group_name);
    check.dims("gathered_input", gathered_input, 2, "[tokens, in]");
    check.floating("gathered_input", gathered_input);
    check_factor(check, "weight", weight, gathered_input, "gathered_input", gathered_input.sym_size(1), 0);
    check_rows(check, "gathered_input.size(0)", gathered_input.sym_size(0), group.size);
  }
  at::Tensor empty() const {
    const Group group(kTrailing, process_group_name);
    return empty_result({gathered_input.sym_size(0) / group.size, weight.sym_size(1)}, gathered_input.options());
  }
};

struct TrailingBackward {
  static constexpr const char* kName = "sequence_parallel_trailing_matmul_bwd";
  static constexpr const char* kResults[] = {"grad_gathered_input", "grad_weight"};
  using Result = std::tuple<at::Tensor, at::Tensor>;
  at::Tensor gathered_input, weight, grad_scattered_output;
  bool fuse = true;
  std::string_view process_group_name{};
  bool need_input = true, need_weight = true;

  static constexpr auto arguments() {
    using A = TrailingBackward;
    return std::tuple{arg("gathered_input", &A::gathered_input),
                      arg("weight", &A::weight),
                      arg("grad_scattered_output", &A::grad_scattered_output),
                      arg("fuse", &A::fuse).required(),
                      arg("process_group_name", &A::process_group_name).required(),
                      arg("need_input", &A::need_input),
                      arg("need_weight", &A::need_weight)};
  }
  void check() const {
    TrailingMatmul{gathered_input, weight, fuse, process_group_name}.check();
    const Group group(kTrailing, process_group_name);
    Check(kTrailing).shape("grad_scattered_output", grad_scattered_output,
                           {gathered_input.sym_size(0) / group.size, weight.sym_size(1)}, "that of the output");
  }
  Result empty() const { return {empty_result(gathered_input, need_input), empty_result(weight, need_weight)}; }
};

at::Tensor trailing_forward(const TrailingMatmul& args) {
  args.check();
  const auto& [x, weight, fuse, name] = args;
  const Group group(kTrailing, name);
  group.check_same_call(
      "(input " + describe(x) + ", weight " + describe(weight) + ", fuse " + (fuse ? "true)" : "false)"), x.device());
  at::Tensor out = args.empty();
  multiply_and_scatter(group, x, {{weight}}, {out}, {.fuse = fuse});
  return out;
}

// The gradient is gathered once. Where it pays, its product with the weight follows the arriving rows.
std::tuple<at::Tensor, at::Tensor> trailing_backward(const TrailingBackward& args) {
  constexpr const char* kGathering = "gathering the gradient";
  args.check();
  const Group group(kTrailing, args.process_group_name);
  group.check_same_call(" backward(input " + describe(args.gathered_input) + ", weight " + describe(args.weight) +
                            ", gradients wanted: " + (args.need_input ? "input" : "") +
                            (args.need_weight ? " weight)" : ")"),
                        args.gathered_input.device());
  auto [grad_input, grad_weight] = args.empty();
  if (args.need_input) {
    std::vector<at::Tensor> shards;  // by rank
    gather_and_multiply(group, args.grad_scattered_output, {{args.weight.t()}}, {grad_input}, {.fuse = args.fuse},
                        &shards);
    if (args.need_weight)
      grad_weight = product(args.gathered_input.t(), shards.size() == 1 ? shards[0] : at::cat(shards));
  } else if (args.need_weight) {
    const at::Tensor gathered = group.start_gather(kGathering, args.grad_scattered_output);
    group.wait(kGathering, gathered);
    grad_weight = product(args.gathered_input.t(), gathered);
  }
  return {std::move(grad_input), std::move(grad_weight)};
}

struct TrailingKept {
  static constexpr const char* kNode = "XformersSequenceParallelTrailingBackward";
  at::Tensor x, weight;
  bool fuse = true;
  int64_t group = 0;
  static constexpr auto members() {
    using K = TrailingKept;
    return std::tuple{&K::x, &K::weight, &K::fuse, &K::group};
  }
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    const auto [dx, dw] =
        call(TrailingBackward{x, weight, grads[0], fuse, group_of_number(group), wanted[0], wanted[1]});
    return wanted.only(dx, dw);
  }
};

at::Tensor trailing_autograd(const TrailingMatmul& args) {
  args.check();
  const auto node = record<TrailingKept>(args.gathered_input, args.weight);
  at::Tensor out = with_history(below_autograd(args), node);
  if (node) node->keep({args.gathered_input, args.weight, args.fuse, number_of_group(args.process_group_name)});
  return out;
}

// ---- x w_i^T for an x that all ranks have ----
struct ColumnMatmul {
  static constexpr const char* kName = "column_parallel_matmul_fwd";
  using Result = std::vector<at::Tensor>;
  at::Tensor x;
  at::TensorList weights{};
  std::string_view process_group_name{};

  static constexpr auto arguments() {
    using A = ColumnMatmul;
    return std::tuple{arg("x", &A::x), arg("weights", &A::weights),
                      arg("process_group_name", &A::process_group_name).required()};
  }
  void check() const {
    const Check check(kColumn);
    check.dims("x", x, 2, "[tokens, in]");
    check.floating("x", x);
    for (const at::Tensor& w : weights) check_factor(check, "weight", w, x, "x", x.sym_size(1), 1);
  }
  Result empty() const {
    Result out;
    for (const at::Tensor& w : weights) out.push_back(empty_result({x.sym_size(0), w.sym_size(0)}, x.options()));
    return out;
  }
};

struct ColumnBackward {
  static constexpr const char* kName = "column_parallel_matmul_bwd";
  using Result = std::vector<at::Tensor>;  // of x, then of the weights
  at::Tensor x;
  at::TensorList weights{}, grad_outputs{};
  std::string_view process_group_name{};
  bool need_input = true, need_weights = true;

  static constexpr auto arguments() {
    using A = ColumnBackward;
    return std::tuple{arg("x", &A::x),
                      arg("weights", &A::weights),
                      arg("grad_outputs", &A::grad_outputs),
                      arg("process_group_name", &A::process_group_name).required(),
                      arg("need_input", &A::need_input),
                      arg("need_weights", &A::need_weights)};
  }
  void check() const {
    ColumnMatmul{x, weights, process_group_name}.check();
    const Check check(kColumn);
    check.equal("the number of gradients", static_cast<int64_t>(grad_outputs.size()),
                static_cast<int64_t>(weights.size()), "give one for each weight");
    for (size_t i = 0; i < weights.size(); ++i) {
      check.shape("grad_outputs", grad_outputs[i], {x.sym_size(0), weights[i].sym_size(0)}, "those of the outputs");
    }
  }
  Result empty() const {
    Result out{empty_result(x, need_input)};
    for (const at::Tensor& w : weights) out.push_back(empty_result(w, need_weights));
    return out;
  }
};

std::vector<at::Tensor> column_forward(const ColumnMatmul& args) {
  args.check();
  std::vector<at::Tensor> out;
  for (const at::Tensor& w : args.weights) out.push_back(product(args.x, w.t()));
  return out;
}

// The sum of dx over ranks as rows to sum and rows to gather: rows are padded to a multiple of the ranks.
std::vector<at::Tensor> column_backward(const ColumnBackward& args) {
  constexpr const char* kSumming = "summing the input's gradient";
  args.check();
  const Group group(kColumn, args.process_group_name);
  group.check_same_call(" backward(x " + describe(args.x) + ", weights " + describe_all(args.weights) +
                            ", gradients wanted: " + (args.need_input ? "x" : "") +
                            (args.need_weights ? " weights)" : ")"),
                        args.x.device());
  if (args.weights.empty()) return {at::zeros_like(args.x)};
  std::vector<at::Tensor> result = args.empty(), grads;
  for (const at::Tensor& grad : args.grad_outputs) grads.push_back(grad.contiguous());
  at::Tensor moved;
  const int64_t rows = args.x.size(0), padded = (rows + group.size - 1) / group.size * group.size;
  if (args.need_input) {
    TileGrid right;
    for (const at::Tensor& w : args.weights) right.push_back({w});
    at::Tensor summands = tiled_matmul({grads}, right)[0][0];
    if (padded != rows) summands = at::constant_pad_nd(summands, {0, 0, 0, padded - rows});
    moved = start_sum_of_rows(group, kSumming, summands);
  }
  if (args.need_weights) {
    for (size_t i = 0; i < grads.size(); ++i) result[1 + i] = product(grads[i].t(), args.x);
  }
  if (args.need_input) {
    const at::Tensor whole = group.start_gather(kSumming, finish_sum_of_rows(group, kSumming, moved));
    group.wait(kSumming, whole);
    result[0] = whole.narrow(0, 0, rows);
  }
  return result;
}

struct ColumnKept {
  static constexpr const char* kNode = "XformersColumnParallelBackward";
  at::Tensor x;
  std::vector<at::Tensor> weights{};
  int64_t group = 0;
  static constexpr auto members() {
    using K = ColumnKept;
    return std::tuple{&K::x, &K::weights, &K::group};
  }
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    const std::vector<at::Tensor> all = defined_gradients(grads, x, {x.sym_size(0)}, weights, 0);
    const bool any_weight = std::find(wanted.inputs.begin() + 1, wanted.inputs.end(), true) != wanted.inputs.end();
    variable_list result = call(ColumnBackward{x, weights, all, group_of_number(group), wanted[0], any_weight});
    for (size_t i = 0; i < result.size(); ++i) {
      if (!wanted[i]) result[i] = at::Tensor();
    }
    return result;
  }
};

std::vector<at::Tensor> column_autograd(const ColumnMatmul& args) {
  args.check();
  const auto node = record<ColumnKept>(args.x, args.weights);
  std::vector<at::Tensor> out = below_autograd(args);
  if (!node) return out;
  for (at::Tensor& t : out) t = with_history(std::move(t), node);
  node->keep({args.x, args.weights.vec(), number_of_group(args.process_group_name)});
  return out;
}

// ---- entry points: any number of dimensions, autocast ----
at::Tensor flattened(const Check& check, const char* name, const at::Tensor& x) {
  if (x.dim() < 2) check.fail(name, describe(x), "2 or more dimensions, [tokens, ..., in]", "add a dimension");
  return x.reshape_symint({c10::multiply_integers(x.sym_sizes().slice(0, x.dim() - 1)), x.sym_size(-1)});
}

at::Tensor unflattened(const at::Tensor& out, const at::Tensor& like, const c10::SymInt& rows) {
  std::vector<c10::SymInt> sizes = like.sym_sizes().vec();
  sizes.front() = rows;
  sizes.back() = out.sym_size(1);
  return out.view_symint(sizes);
}

struct Casting {
  explicit Casting(const at::Tensor& x)
      : device(x.device().type()), enabled(at::autocast::is_autocast_enabled(x.device().type())) {}
  at::Tensor operator()(const at::Tensor& t) const {
    return enabled ? at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), t, device) : t;
  }
  std::vector<at::Tensor> operator()(at::TensorList list) const {
    std::vector<at::Tensor> result;
    for (const at::Tensor& t : list) result.push_back((*this)(t));
    return result;
  }
  c10::DeviceType device;
  bool enabled;
};

std::vector<at::Tensor> leading_named(const at::Tensor& x, at::TensorList weights, bool fuse, std::string_view name) {
  const Casting cast(x);
  const std::vector<at::Tensor> cast_weights = cast(weights);
  std::vector<at::Tensor> out = call(LeadingMatmul{flattened(Check(kLeading), "x", cast(x)), cast_weights, fuse, name});
  const Group group(kLeading, name);
  for (at::Tensor& t : out) t = unflattened(t, x, x.sym_size(0) * group.size);
  return out;
}

at::Tensor trailing_named(const at::Tensor& x, const at::Tensor& weight, bool fuse, std::string_view name) {
  const Casting cast(x);
  const Check check(kTrailing);
  const Group group(kTrailing, name);
  const at::Tensor flat = flattened(check, "x", cast(x));
  check_rows(check, "x.size(0)", x.sym_size(0), group.size);
  return unflattened(call(TrailingMatmul{flat, cast(weight), fuse, name}), x, x.sym_size(0) / group.size);
}

std::vector<at::Tensor> column_named(const at::Tensor& x, at::TensorList weights, std::string_view name) {
  const Casting cast(x);
  const std::vector<at::Tensor> cast_weights = cast(weights);
  std::vector<at::Tensor> out = call(ColumnMatmul{flattened(Check(kColumn), "x", cast(x)), cast_weights, name});
  for (at::Tensor& t : out) t = unflattened(t, x, x.sym_size(0));
  return out;
}

// Under the names and schemas that programs know.
std::vector<at::Tensor> leading_fwd(const at::Tensor& x, at::TensorList weights, bool fuse, std::string_view name) {
  return call(LeadingMatmul{x, weights, fuse, name});
}

std::tuple<at::Tensor, std::vector<at::Tensor>> leading_bwd(const at::Tensor& x, at::TensorList weights,
                                                            at::TensorList grads, bool fuse, std::string_view name) {
  std::vector<at::Tensor> all = call(LeadingBackward{x, weights, grads, fuse, name});
  at::Tensor grad_input = all[0];
  all.erase(all.begin());
  return {grad_input, std::move(all)};
}

at::Tensor trailing_fwd(const at::Tensor& x, const at::Tensor& weight, bool fuse, std::string_view name) {
  return call(TrailingMatmul{x, weight, fuse, name});
}

std::tuple<at::Tensor, at::Tensor> trailing_bwd(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& grad,
                                                bool fuse, std::string_view name) {
  return call(TrailingBackward{x, weight, grad, fuse, name});
}

}  // namespace

std::vector<at::Tensor> sequence_parallel_leading_matmul(const at::Tensor& x, at::TensorList weights, bool fuse,
                                                         const std::string& group) {
  return leading_named(x, weights, fuse, group);
}

at::Tensor sequence_parallel_trailing_matmul(const at::Tensor& x, const at::Tensor& weight, bool fuse,
                                             const std::string& group) {
  return trailing_named(x, weight, fuse, group);
}

std::vector<at::Tensor> column_parallel_matmul(const at::Tensor& x, at::TensorList weights, const std::string& group) {
  return column_named(x, weights, group);
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<LeadingMatmul, LeadingBackward, TrailingMatmul, TrailingBackward, ColumnMatmul, ColumnBackward>(m);
  m.def("sequence_parallel_leading_matmul(Tensor x, Tensor[] weights, bool fuse, str process_group_name) -> Tensor[]",
        leading_named);
  m.def("sequence_parallel_trailing_matmul(Tensor x, Tensor weight, bool fuse, str process_group_name) -> Tensor",
        trailing_named);
  m.def("column_parallel_matmul(Tensor x, Tensor[] weights, str process_group_name) -> Tensor[]", column_named);
}

TORCH_LIBRARY_FRAGMENT(xformers_python, m) {
  using namespace xformers::ops;
  m.def(
      "sequence_parallel_leading_matmul_fwd(Tensor scattered_input, Tensor[] weights, bool fuse, "
      "str process_group_name) -> Tensor[]",
      leading_fwd);
  m.def(
      "sequence_parallel_leading_matmul_bwd(Tensor scattered_input, Tensor[] weights, Tensor[] grad_gathered_outputs, "
      "bool fuse, str process_group_name) -> (Tensor, Tensor[])",
      leading_bwd);
  m.def(
      "sequence_parallel_trailing_matmul_fwd(Tensor gathered_input, Tensor weight, bool fuse, str process_group_name) "
      "-> Tensor",
      trailing_fwd);
  m.def(
      "sequence_parallel_trailing_matmul_bwd(Tensor gathered_input, Tensor weight, Tensor grad_scattered_output, "
      "bool fuse, str process_group_name) -> (Tensor, Tensor)",
      trailing_bwd);
}

TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  using namespace xformers::ops;
  implement<leading_forward>(m);
  implement<leading_backward>(m);
  implement<trailing_forward>(m);
  implement<trailing_backward>(m);
  implement<column_forward>(m);
  implement<column_backward>(m);
}

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::ops;
  implement<leading_autograd>(m);
  implement<trailing_autograd>(m);
  implement<column_autograd>(m);
  implement_no_gradients<LeadingBackward, TrailingBackward, ColumnBackward>(m);
}
