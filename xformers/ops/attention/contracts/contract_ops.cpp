// The contracts as operators: what the thin Python classes ask.
#include <ATen/core/stack.h>
#include <torch/library.h>

#include "xformers/kernels/base/error.h"
#include "xformers/ops/attention/contracts/dispatch.h"
#include "xformers/ops/attention/contracts/flops.h"

namespace xformers::ops {
namespace {

// Several operators take a whole call as arguments. They are boxed functions, which find arguments by name, so that the
// list of arguments stands in one place. (scale_given, autotune and block_n are part of a call, but no operator refuses
// one for them.)
constexpr const char* kRequestSchema =
    "Tensor query, Tensor key_, Tensor value, *, str bias_type='None', Tensor? dense_bias=None, int[] seqlens_q=[], "
    "int[] seqlens_k=[], int page_size=0, float p=0.0, bool scale_given=False, ScalarType? output_dtype=None, "
    "bool is_partial=False, bool bias_requires_grad=False, int num_groups=1, int split_k=0, bool autotune=False, "
    "int block_n=64, bool fp8=False, int[]? cuda_capability=None, float softcap=0.0, bool alibi_slopes=False, "
    "bool slopes_require_grad=False, bool sinks=False";

class Arguments {
 public:
  Arguments(const c10::OperatorHandle& op, const torch::jit::Stack& stack)
      : schema_(op.schema()), values_(torch::jit::last(stack, schema_.arguments().size())) {}

  const c10::IValue& operator[](const char* name) const { return values_[*schema_.argumentIndexWithName(name)]; }
  std::string text(const char* name) const { return (*this)[name].toStringRef(); }
  bool flag(const char* name) const { return (*this)[name].toBool(); }

 private:
  const c10::FunctionSchema& schema_;
  at::ArrayRef<c10::IValue> values_;
};

void require_pair(const Contract& forward, const Contract& backward, double p, int64_t num_sequences) {
  const auto objection = pair_objection(forward, backward, p, num_sequences);
  if (objection) throw Error("attention: " + *objection + ".  Fix: use operators of one module, or leave op out.");
}

AttentionRequest to_request(const Arguments& arguments) {
  AttentionRequest request{.query = arguments["query"].toTensor(),
                           .key = arguments["key_"].toTensor(),
                           .value = arguments["value"].toTensor(),
                           .bias = arguments.text("bias_type"),
                           .dense_bias = arguments["dense_bias"].toOptional<at::Tensor>(),
                           .bias_requires_grad = arguments.flag("bias_requires_grad"),
                           .softcap = arguments["softcap"].toDouble(),
                           .alibi_slopes = arguments.flag("alibi_slopes"),
                           .slopes_require_grad = arguments.flag("slopes_require_grad"),
                           .sinks = arguments.flag("sinks"),
                           .seqlens_q = arguments["seqlens_q"].toIntVector(),
                           .seqlens_k = arguments["seqlens_k"].toIntVector(),
                           .page_size = arguments["page_size"].toInt(),
                           .p = arguments["p"].toDouble(),
                           .output_dtype = arguments["output_dtype"].toOptional<at::ScalarType>(),
                           .partial = arguments.flag("is_partial"),
                           .num_groups = arguments["num_groups"].toInt(),
                           .split_k = arguments["split_k"].toInt(),
                           .fp8 = arguments.flag("fp8")};
  if (const c10::IValue& capability = arguments["cuda_capability"]; !capability.isNone()) {
    const std::vector<int64_t> numbers = capability.toIntVector();
    if (numbers.size() != 2) {
      throw Error("attention: cuda_capability has " + std::to_string(numbers.size()) +
                  " numbers, expected 2.  Fix: pass torch.cuda.get_device_capability().");
    }
    request.capability = CudaCapability{numbers[0], numbers[1]};
  }
  return request;
}

// kFunction(Arguments) -> the result, or nothing
template <auto kFunction>
void boxed(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto call = [&] { return kFunction(Arguments(op, *stack)); };
  if constexpr (std::is_void_v<decltype(call())>) {
    call();
    torch::jit::drop(*stack, op.schema().arguments().size());
  } else {
    auto result = call();
    torch::jit::drop(*stack, op.schema().arguments().size());
    stack->emplace_back(std::move(result));
  }
}

std::vector<std::string> reasons(const Arguments& arguments) {
  return not_supported_reasons(find_contract(arguments.text("key")), to_request(arguments));
}

void require(const Arguments& arguments) {
  const Contract& contract = find_contract(arguments.text("key"));
  const std::string name = arguments.text("name");
  require_supported(contract, to_request(arguments), name.empty() ? contract.name() : name);
}

// A call that names the operator of one direction or of both ('' otherwise): an error unless the named ones take it, go
// together, and the other direction has one too where gradients are wanted.
void check_named(const Arguments& arguments) {
  const AttentionRequest request = to_request(arguments);
  const auto named = [&](const char* direction) -> const Contract* {
    const std::string key = arguments.text(direction),
                      name = arguments.text((direction + std::string("_name")).c_str());
    if (key.empty()) return nullptr;
    const Contract& contract = find_contract(key);
    require_supported(contract, request, name.empty() ? contract.name() : name);
    return &contract;
  };
  const bool needs_gradient = arguments.flag("needs_gradient");
  const Contract* forward = named("forward");
  const Contract* backward = needs_gradient ? named("backward") : nullptr;
  if (!needs_gradient || (!forward && !backward)) return;
  if (forward && backward) return require_pair(*forward, *backward, request.p, request.seqlens_q.size());
  dispatch(request, {.backward = forward != nullptr,
                     .needs_gradient = true,
                     .use_fa3 = arguments.flag("use_fa3"),
                     .pair_with = forward ? forward : backward});
}

std::vector<std::string> priority(const Arguments& arguments) {
  std::vector<std::string> keys;
  for (const Contract* contract :
       dispatch_order(to_request(arguments), {.backward = arguments.flag("backward"),
                                              .needs_gradient = arguments.flag("needs_gradient"),
                                              .use_fa3 = arguments.flag("use_fa3")})) {
    keys.emplace_back(contract->key);
  }
  return keys;
}

std::string choose(const Arguments& arguments) {
  const std::string pair_with = arguments.text("pair_with");
  return dispatch(to_request(arguments), {.backward = arguments.flag("backward"),
                                          .needs_gradient = arguments.flag("needs_gradient"),
                                          .use_fa3 = arguments.flag("use_fa3"),
                                          .pair_with = pair_with.empty() ? nullptr : &find_contract(pair_with),
                                          .packed_lse = arguments["lse_packed"].toOptional<bool>()})
      .key;
}

std::vector<std::string> all_keys() {
  std::vector<std::string> keys;
  for (const Contract& contract : contracts()) keys.emplace_back(contract.key);
  return keys;
}

std::string describe_contract(const std::string& key) { return contract_json(find_contract(key)); }

std::vector<std::string> shape_reasons(const std::string& key, int64_t seqlen_q, int64_t seqlen_k, int64_t head_dim,
                                       int64_t head_dim_v) {
  return shape_not_supported_reasons(find_contract(key), seqlen_q, seqlen_k, head_dim, head_dim_v);
}

void check_pair(const std::string& forward, const std::string& backward, double p, int64_t num_sequences) {
  require_pair(find_contract(forward), find_contract(backward), p, num_sequences);
}

int64_t flops(at::IntArrayRef query, at::IntArrayRef key, at::IntArrayRef value, bool causal, bool backward,
              bool heads_first, const std::optional<at::Tensor>& cu_seqlens_q,
              const std::optional<at::Tensor>& cu_seqlens_k, const std::optional<at::Tensor>& seqused_k) {
  return attention_flops(query, key, value, causal, backward, heads_first, {cu_seqlens_q, cu_seqlens_k, seqused_k});
}

// <name>(<before>, a whole call, <after>) -> <result>, answered by kFunction
template <auto kFunction>
void define(torch::Library& m, const std::string& name, const std::string& before, const std::string& after,
            const std::string& result) {
  const std::string schema = name + "(" + before + ", " + kRequestSchema + after + ") -> " + result;
  m.def(torch::schema(schema.c_str()), torch::CppFunction::makeFromBoxedFunction<boxed<kFunction>>());
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  m.def("attention_contracts() -> str[]", all_keys);
  m.def("attention_contract(str key) -> str", describe_contract);
  m.def("attention_shape_not_supported_reasons(str key, int Mq, int Mkv, int K, int Kv) -> str[]", shape_reasons);
  define<reasons>(m, "attention_not_supported_reasons", "str key", "", "str[]");
  define<require>(m, "attention_require", "str key", ", str name=''", "()");
  define<check_named>(m, "attention_check_named", "str forward, str backward",
                      ", str forward_name='', str backward_name='', bool needs_gradient=False, bool use_fa3=False",
                      "()");
  define<priority>(m, "attention_priority", "bool backward", ", bool needs_gradient=False, bool use_fa3=False",
                   "str[]");
  define<choose>(m, "attention_dispatch", "bool backward",
                 ", bool needs_gradient=False, bool use_fa3=False, str pair_with='', bool? lse_packed=None", "str");
  m.def("attention_check_pair(str forward, str backward, float p=0.0, int num_sequences=0) -> ()", check_pair);
  m.def(
      "attention_flops(int[] query, int[] key, int[] value, *, bool causal=False, bool backward=False, "
      "bool heads_first=False, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, Tensor? seqused_k=None) -> int",
      flops);
}
