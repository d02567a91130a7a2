// The fused linear layers, and the steps of which Python makes the variants that call anything instead of a product.
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include "xformers/ops/common/operator_node.h"
#include "xformers/ops/sequence_parallel/products.h"
#include "xformers/ops/sequence_parallel/sequence_parallel.h"

namespace xformers::ops {
namespace {

using parallel::Pattern;

// Both directions have the same arguments; Kind names them and says how rows grow.
template <class Kind>
struct FusedLinear {
  static constexpr const char* kName = Kind::kName;
  using Result = std::vector<at::Tensor>;
  at::Tensor input;
  at::TensorList weights{}, scale_weights{};
  std::string_view process_group_name{};
  OptionalTensor scale_input{};
  std::optional<at::ScalarType> out_dtype{};
  int64_t num_stripes = 1;
  bool wait = true, memcpy = true;

  static constexpr auto arguments() {
    using A = FusedLinear;
    return std::tuple{arg(Kind::kInput, &A::input),
                      arg("weights", &A::weights),
                      arg("scale_weights", &A::scale_weights),
                      arg("process_group_name", &A::process_group_name).required(),
                      arg(Kind::kScale, &A::scale_input),
                      arg("out_dtype", &A::out_dtype),
                      arg("num_stripes", &A::num_stripes),
                      arg("wait", &A::wait),
                      arg("memcpy", &A::memcpy)};
  }

  void check() const {
    const Check check(kName);
    const Group group(kName, process_group_name);
    if (input.dim() < 2) check.fail(Kind::kInput, describe(input), "2 or more dimensions", "add a dimension");
    if (!Kind::kGathers && input.sym_size(0) % group.size != 0) {
      check.fail(std::string(Kind::kInput) + ".size(0)",
                 std::to_string(input.sym_size(0).guard_int(__FILE__, __LINE__)),
                 "a multiple of the number of ranks, " + std::to_string(group.size), "pad the sequence");
    }
    for (const at::Tensor& w : weights) {
      check.dims("weight", w, 2, "[out, in]");
      check.equal("weight.size(1)", w.sym_size(1), input.sym_size(-1), "a weight has a column for each input feature");
      check.same_dtype("weight", w, input, Kind::kInput);
      check.same_device("weight", w, input, Kind::kInput);
    }
    if (!scale_input) {
      if (!scale_weights.empty()) {
        check.fail(Kind::kScale, "None with a scale_weight", "both scales, or neither", "give the input's scale too");
      }
      check.floating(Kind::kInput, input);
      return;
    }
    if (scale_weights.size() != weights.size()) {
      check.fail("the number of scales of weights", std::to_string(scale_weights.size()),
                 std::to_string(weights.size()), "give one for each weight");
    }
    if (!at::isFloat8Type(input.scalar_type())) {
      check.fail(Kind::kInput, describe(input), "fp8, as scales are given", "leave the scales out");
    }
    if (!out_dtype) check.fail("out_dtype", "None", "the dtype of the result, as inputs are fp8", "name one");
  }

  Result empty() const {
    const Group group(kName, process_group_name);
    Result out;
    for (const at::Tensor& w : weights) {
      std::vector<c10::SymInt> sizes = input.sym_sizes().vec();
      sizes.front() = Kind::kGathers ? sizes.front() * group.size : sizes.front() / group.size;
      sizes.back() = w.sym_size(0);
      out.push_back(empty_result(sizes, input.options().dtype(out_dtype.value_or(input.scalar_type()))));
    }
    return out;
  }
};

struct GatherLinear {
  static constexpr const char* kName = "fused_allgather_and_linear";
  static constexpr const char *kInput = "scattered_input", *kScale = "scale_scattered_input";
  static constexpr bool kGathers = true;
};
struct LinearScatter {
  static constexpr const char* kName = "fused_linear_and_reducescatter";
  static constexpr const char *kInput = "gathered_input", *kScale = "scale_gathered_input";
  static constexpr bool kGathers = false;
};

template <class Kind>
void fill(const FusedLinear<Kind>& args, const std::vector<at::Tensor>& out) {
  const Group group(Kind::kName, args.process_group_name);
  group.keep_num_stripes(args.num_stripes);
  std::string signature = "(input " + describe(args.input) + ", weights";
  for (const at::Tensor& w : args.weights) signature += " " + describe(w);
  group.check_same_call(signature + (args.scale_input ? ", fp8)" : ")"), args.input.device());
  std::vector<Factor> factors;
  for (size_t i = 0; i < args.weights.size(); ++i) {
    Factor factor{args.weights[i].t()};
    if (args.scale_input) {
      factor = {args.weights[i].contiguous().t(), args.scale_input, args.scale_weights[i], args.out_dtype};
    }
    factors.push_back(std::move(factor));
  }
  const at::Tensor flat = args.input.reshape({-1, args.input.size(-1)});
  std::vector<at::Tensor> rows;
  for (const at::Tensor& t : out) rows.push_back(t.view({-1, t.size(-1)}));
  const SpreadOptions options{.fuse = true, .wait = args.wait, .copy = args.memcpy};
  try {
    if (Kind::kGathers) {
      gather_and_multiply(group, flat, factors, rows, options);
    } else {
      multiply_and_scatter(group, flat, factors, rows, options);
    }
  } catch (const DeviceError&) {  // what was written is not the result
    for (const at::Tensor& t : rows) at::Tensor(t).fill_(std::numeric_limits<double>::quiet_NaN());
    throw;
  }
}

template <class Kind>
std::vector<at::Tensor> fused_linear_of(const FusedLinear<Kind>& args) {
  args.check();
  std::vector<at::Tensor> out = args.empty();
  if (args.input.numel() == 0) {
    for (at::Tensor& t : out) t.zero_();
  } else if (!out.empty()) {
    fill(args, out);
  }
  return out;
}

template <class Kind>
void fused_linear_out(const at::Tensor& input, at::TensorList weights, at::TensorList scale_weights,
                      std::string_view group_name, const OptionalTensor& scale_input,
                      std::optional<at::ScalarType> out_dtype, int64_t num_stripes, bool wait, bool memcpy,
                      at::TensorList out) {
  FusedLinear<Kind> args{input, weights, scale_weights, group_name, scale_input, out_dtype, num_stripes, wait, memcpy};
  args.check();
  const Check check(Kind::kName);
  check.equal("the number of outs", static_cast<int64_t>(out.size()), static_cast<int64_t>(weights.size()),
              "give one for each weight");
  const Group group(Kind::kName, group_name);
  for (size_t i = 0; i < out.size(); ++i) {
    std::vector<c10::SymInt> sizes;
    if (Kind::kGathers) sizes.push_back(group.size);
    sizes.insert(sizes.end(), input.sym_sizes().begin(), input.sym_sizes().end());
    if (!Kind::kGathers) sizes.front() = sizes.front() / group.size;
    sizes.back() = weights[i].sym_size(0);
    check.shape("out", out[i], sizes, Kind::kGathers ? "[ranks] + input.shape[:-1] + [out]" : "that of the result");
    check.contiguous("out", out[i]);
    if (out[i].scalar_type() != out_dtype.value_or(input.scalar_type())) {
      check.fail("out", describe(out[i]), describe_dtype(out_dtype.value_or(input.scalar_type())),
                 "let it have the result's dtype");
    }
  }
  if (input.numel() == 0) {
    for (const at::Tensor& t : out) at::Tensor(t).zero_();
  } else if (!out.empty()) {
    fill(args, out.vec());
  }
}

void fused_linear_out_meta(const at::Tensor&, at::TensorList, at::TensorList, std::string_view, const OptionalTensor&,
                           std::optional<at::ScalarType>, int64_t, bool, bool, at::TensorList) {}

template <class Kind>
std::string out_schema() {
  return std::string(Kind::kName) + "_out(Tensor " + Kind::kInput +
         ", Tensor[] weights, Tensor[] scale_weights, str process_group_name, Tensor? " + Kind::kScale +
         "=None, ScalarType? out_dtype=None, int num_stripes=1, bool wait=True, bool memcpy=True, *, Tensor(a!)[] out) "
         "-> ()";
}

// ---- the steps of the variants that call anything ----
// Several tensors in one buffer of bytes, each at a multiple of kAlign; behind them one part more, whose first byte
// says that its sender failed.
constexpr int64_t kAlign = 64;
int64_t packed_size(const at::Tensor& t) { return (static_cast<int64_t>(t.nbytes()) + kAlign - 1) / kAlign * kAlign; }

int64_t packed_bytes(at::TensorList tensors) {
  int64_t size = kAlign;
  for (const at::Tensor& t : tensors) size += packed_size(t);
  return size;
}

std::vector<at::Tensor> unpack(const at::Tensor& bytes, at::TensorList like) {
  std::vector<at::Tensor> views;
  int64_t first = 0;
  for (const at::Tensor& t : like) {
    const at::Tensor part = bytes.narrow(0, first, static_cast<int64_t>(t.nbytes()));
    views.push_back(part.view(t.scalar_type()).view(t.sizes()));
    first += packed_size(t);
  }
  return views;
}

at::Tensor pack(at::TensorList tensors) {
  at::Tensor bytes = at::empty({packed_bytes(tensors)}, tensors[0].options().dtype(at::kByte)).zero_();
  const std::vector<at::Tensor> views = unpack(bytes, tensors);
  for (size_t i = 0; i < views.size(); ++i) views[i].copy_(tensors[i]);
  return bytes;
}

void check_alike(const char* name, at::TensorList tensors) {
  for (const at::Tensor& t : tensors) {
    Check(name).same_dtype("an input", t, tensors[0], "the first one");
    Check(name).same_device("an input", t, tensors[0], "the first one");
  }
}

constexpr char kGatherAnything[] = "fused_allgather_and_anything",
               kScatterAnything[] = "fused_anything_and_reducescatter";

// Predicted seconds (a product per rank, one collective and one product); rates as the members of parallel::Rates.
std::vector<double> predict_products(bool gather, int64_t ranks, int64_t rows, int64_t k, int64_t n,
                                     int64_t element_size, at::ArrayRef<double> rates) {
  const parallel::SpreadProduct product{
      gather ? parallel::Pattern::kGather : parallel::Pattern::kScatter, ranks, rows, k, n, element_size};
  const parallel::Choice choice = choose(product, {rates.at(0), rates.at(1), rates.at(2), rates.at(3)});
  return {choice.overlapped_seconds, choice.plain_seconds};
}

// In which order ranks are served.
std::vector<int64_t> spread_steps(bool gather, std::string_view name) {
  const Group group(gather ? kGatherAnything : kScatterAnything, name);
  const Pattern pattern = gather ? Pattern::kGather : Pattern::kScatter;
  const std::vector<parallel::Step> steps = group.may_overlap()
                                                ? parallel::overlapped_steps(pattern, group.size, group.rank)
                                                : parallel::plain_steps(group.size);
  std::vector<int64_t> ranks;
  for (const parallel::Step& step : steps) ranks.push_back(step.rank);
  return ranks;
}

void begin_anything(const Group& group, at::TensorList tensors, int64_t num_stripes) {
  group.keep_num_stripes(num_stripes);
  check_alike(group.operation, tensors);
  std::string signature = "(";
  for (const at::Tensor& t : tensors) signature += (signature.size() > 1 ? ", " : "") + describe(t);
  if (!tensors.empty()) group.check_same_call(signature + ")", tensors[0].device());
}

// Everybody's bytes, by rank, in flight: all leave at once, so that a rank that fails in between keeps nobody waiting.
std::vector<at::Tensor> start_gathering(at::TensorList inputs, int64_t num_stripes, std::string_view name) {
  constexpr const char* kStep = "gathering the inputs";
  const Group group(kGatherAnything, name);
  begin_anything(group, inputs, num_stripes);
  const at::Tensor mine = pack(inputs);
  std::vector<at::Tensor> all(group.size, mine);
  if (group.may_overlap()) {
    for (const parallel::Step& step : parallel::overlapped_steps(Pattern::kGather, group.size, group.rank)) {
      if (step.send_to >= 0) all[step.rank] = group.start_shift(kStep, mine, step.send_to, step.receive_from);
    }
  } else if (group.size > 1) {
    const at::Tensor gathered = group.start_gather(kStep, mine);
    group.wait(kStep, gathered);
    all = gathered.chunk(group.size);
  }
  return all;
}

std::vector<at::Tensor> arrived(const at::Tensor& bytes, at::TensorList like, std::string_view name) {
  const Group group(kGatherAnything, name);
  group.wait("gathering the inputs", bytes);
  return unpack(bytes, like);
}

// A buffer for what is computed for each rank, and the places in it of one of them.
at::Tensor begin_scattering(at::TensorList outputs, int64_t num_stripes, std::string_view name) {
  const Group group(kScatterAnything, name);
  begin_anything(group, outputs, num_stripes);
  return at::empty({group.size, packed_bytes(outputs)}, outputs[0].options().dtype(at::kByte)).zero_();
}

std::vector<at::Tensor> places(const at::Tensor& buffer, int64_t rank, at::TensorList like) {
  return unpack(buffer.select(0, rank), like);
}

// After the call for `rank`: its bytes leave. What arrives in turn, or nothing where all moves at the end.
at::Tensor start_scattering(const at::Tensor& buffer, int64_t rank, bool failed, std::string_view name) {
  const Group group(kScatterAnything, name);
  if (failed) buffer.select(0, rank).narrow(0, buffer.size(1) - kAlign, 1).fill_(1);
  const at::Tensor own = buffer.select(0, rank);
  if (rank == group.rank || !group.may_overlap()) return own;
  const int64_t distance = (rank - group.rank + group.size) % group.size;
  return group.start_shift("summing the outputs", own, rank, (group.rank - distance + group.size) % group.size);
}

// received[i]: what start_scattering returned for rank i.
void finish_scattering(const at::Tensor& buffer, at::TensorList received, at::TensorList outputs,
                       std::string_view name) {
  constexpr const char* kStep = "summing the outputs";
  const Group group(kScatterAnything, name);
  std::vector<at::Tensor> by_source(group.size);
  if (group.may_overlap()) {
    for (int64_t to = 0; to < group.size; ++to) {
      const int64_t distance = (to - group.rank + group.size) % group.size;
      if (to != group.rank) group.wait(kStep, received[to]);
      by_source[(group.rank - distance + group.size) % group.size] = received[to];
    }
  } else {
    const at::Tensor moved = group.start_exchange(kStep, buffer);
    group.wait(kStep, moved);
    for (int64_t from = 0; from < group.size; ++from) by_source[from] = moved.select(0, from);
  }
  std::string failed;
  if (buffer.is_cpu()) {
    for (int64_t from = 0; from < group.size; ++from) {
      const at::Tensor& bytes = by_source[from];
      if (bytes.const_data_ptr<uint8_t>()[bytes.size(0) - kAlign] != 0)
        failed += (failed.empty() ? "" : ", ") + std::to_string(from);
    }
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    at::Tensor out = outputs[i];
    if (!failed.empty()) {
      out.fill_(std::numeric_limits<double>::quiet_NaN());
      continue;
    }
    std::vector<at::Tensor> parts;
    for (const at::Tensor& bytes : by_source) parts.push_back(unpack(bytes, outputs)[i]);
    out.copy_(sum_in_order(parts));
  }
  if (!failed.empty()) {
    throw DeviceError(std::string(kScatterAnything) + ": " + kStep + " failed on rank " + std::to_string(group.rank) +
                      " of " + std::to_string(group.size) + " (group '" + group.name + "'): my_matmul raised on rank " +
                      failed + ".  Fix: see that rank's error");
  }
}

template <class Kind>
std::vector<at::Tensor> run_fused_linear(const at::Tensor& input, at::TensorList weights, const std::string& group,
                                         const FusedLinearOptions& options) {
  const OptionalTensor scale = options.scale_input;
  if (options.out.empty()) {
    return call(
        FusedLinear<Kind>{input, weights, options.scale_weights, group, scale, options.out_dtype, options.num_stripes});
  }
  fused_linear_out<Kind>(input, weights, options.scale_weights, group, scale, options.out_dtype, options.num_stripes,
                         true, true, options.out);
  return options.out;
}

}  // namespace

std::vector<at::Tensor> fused_allgather_and_linear(const at::Tensor& scattered_input, at::TensorList weights,
                                                   const std::string& group, const FusedLinearOptions& options) {
  return run_fused_linear<GatherLinear>(scattered_input, weights, group, options);
}

std::vector<at::Tensor> fused_linear_and_reducescatter(const at::Tensor& gathered_input, at::TensorList weights,
                                                       const std::string& group, const FusedLinearOptions& options) {
  return run_fused_linear<LinearScatter>(gathered_input, weights, group, options);
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<FusedLinear<GatherLinear>, FusedLinear<LinearScatter>>(m);
  m.def(out_schema<GatherLinear>().c_str());
  m.def(out_schema<LinearScatter>().c_str());
  m.def("_spread_steps(bool gather, str process_group_name) -> int[]", spread_steps);
  m.def("_predict_products(bool gather, int ranks, int rows, int k, int n, int element_size, float[] rates) -> float[]",
        predict_products);
  m.def("_start_gathering(Tensor[] inputs, int num_stripes, str process_group_name) -> Tensor[]");
  m.def("_arrived(Tensor bytes, Tensor[] like, str process_group_name) -> Tensor[]");
  m.def("_begin_scattering(Tensor[] outputs, int num_stripes, str process_group_name) -> Tensor");
  m.def("_places(Tensor buffer, int rank, Tensor[] like) -> Tensor[]");
  m.def("_start_scattering(Tensor buffer, int rank, bool failed, str process_group_name) -> Tensor");
  m.def("_finish_scattering(Tensor buffer, Tensor[] received, Tensor[] outputs, str process_group_name) -> ()");
}
TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  using namespace xformers::ops;
  implement<fused_linear_of<GatherLinear>>(m);
  implement<fused_linear_of<LinearScatter>>(m);
  m.impl("fused_allgather_and_linear_out", fused_linear_out<GatherLinear>);
  m.impl("fused_linear_and_reducescatter_out", fused_linear_out<LinearScatter>);
  m.impl("_start_gathering", start_gathering);
  m.impl("_arrived", arrived);
  m.impl("_begin_scattering", begin_scattering);
  m.impl("_places", places);
  m.impl("_start_scattering", start_scattering);
  m.impl("_finish_scattering", finish_scattering);
}
TORCH_LIBRARY_IMPL(xformers, Meta, m) {
  m.impl("fused_allgather_and_linear_out", xformers::ops::fused_linear_out_meta);
  m.impl("fused_linear_and_reducescatter_out", xformers::ops::fused_linear_out_meta);
}
TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::ops;
  implement_no_gradients<FusedLinear<GatherLinear>, FusedLinear<LinearScatter>>(m);
}
