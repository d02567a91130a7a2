// An operator's arguments, said once: a struct of values that lists its members in the order of the schema. From it
// follow the schema, the operator without data (meta), the kernels' entry points, the call and autocast.
//
//   struct Scale {
//     static constexpr const char* kName = "scale";
//     using Result = at::Tensor;
//     at::Tensor x;
//     double factor = 1;
//     static constexpr auto arguments() { return std::tuple{arg("x", &Scale::x), arg("factor", &Scale::factor)}; }
//     void check() const;         // throws
//     at::Tensor empty() const;   // the result, not yet written; sizes may be symbolic
//   };
//   TORCH_LIBRARY_FRAGMENT(xformers, m) { define<Scale>(m); }           // scale(Tensor x, float factor=1.0) -> Tensor
//   TORCH_LIBRARY_IMPL(xformers, CPU, m) { implement<scale_cpu>(m); }   // at::Tensor scale_cpu(const Scale& args)
//   call(Scale{.x = x})
#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "xformers/ops/common/check.h"

namespace xformers::ops {

// ---- the types that arguments have: in the schema, and as LibTorch passes them ----
template <class T>
struct ArgumentType;
#define XFORMERS_ARGUMENT_TYPE(Type, Passed, schema_name) \
  template <>                                             \
  struct ArgumentType<Type> {                             \
    using passed = Passed;                                \
    static constexpr const char* name = schema_name;      \
  }
XFORMERS_ARGUMENT_TYPE(at::Tensor, const at::Tensor&, "Tensor");
XFORMERS_ARGUMENT_TYPE(OptionalTensor, const OptionalTensor&, "Tensor?");
XFORMERS_ARGUMENT_TYPE(at::TensorList, at::TensorList, "Tensor[]");
XFORMERS_ARGUMENT_TYPE(c10::SymInt, c10::SymInt, "SymInt");
XFORMERS_ARGUMENT_TYPE(c10::SymIntArrayRef, c10::SymIntArrayRef, "SymInt[]");
XFORMERS_ARGUMENT_TYPE(int64_t, int64_t, "int");
XFORMERS_ARGUMENT_TYPE(double, double, "float");
XFORMERS_ARGUMENT_TYPE(std::optional<double>, std::optional<double>, "float?");
XFORMERS_ARGUMENT_TYPE(bool, bool, "bool");
XFORMERS_ARGUMENT_TYPE(std::string_view, std::string_view, "str");
XFORMERS_ARGUMENT_TYPE(std::optional<std::string_view>, std::optional<std::string_view>, "str?");
XFORMERS_ARGUMENT_TYPE(std::optional<at::ScalarType>, std::optional<at::ScalarType>, "ScalarType?");
XFORMERS_ARGUMENT_TYPE(std::optional<at::Generator>, std::optional<at::Generator>, "Generator?");
#undef XFORMERS_ARGUMENT_TYPE

// ---- the list of arguments ----
template <class Args, class T>
struct Argument {
  using Type = T;
  const char* name;
  T Args::* member;
  bool is_written = false, is_keyword = false, is_required = false;

  constexpr Argument written() const { return {name, member, true, is_keyword, is_required}; }  // in place
  constexpr Argument keyword() const { return {name, member, is_written, true, is_required}; }  // by name only
  constexpr Argument required() const { return {name, member, is_written, is_keyword, true}; }  // without a default
};

template <class Args, class T>
constexpr Argument<Args, T> arg(const char* name, T Args::* member) {
  return {name, member};
}

template <class Op>
inline constexpr auto kArguments = Op::arguments();

// The members alone, for a node that keeps all arguments (operator_node.h).
template <class Op>
constexpr auto members_of() {
  return std::apply([](const auto&... arguments) { return std::tuple{arguments.member...}; }, Op::arguments());
}

template <class Op, class = std::make_index_sequence<std::tuple_size_v<decltype(Op::arguments())>>>
struct Signature;
template <class Op, size_t... kIndices>
struct Signature<Op, std::index_sequence<kIndices...>> {
  template <size_t kIndex>
  using Passed = typename ArgumentType<typename std::tuple_element_t<kIndex, decltype(Op::arguments())>::Type>::passed;
  using Function = typename Op::Result(Passed<kIndices>...);

  template <auto kBody>
  static typename Op::Result entry(Passed<kIndices>... values) {
    Op args;
    ((args.*std::get<kIndices>(kArguments<Op>).member = std::forward<Passed<kIndices>>(values)), ...);
    return kBody(args);
  }

  static typename Op::Result call(const c10::TypedOperatorHandle<Function>& op, const Op& args) {
    return op.call(args.*std::get<kIndices>(kArguments<Op>).member...);
  }
};

// The one way to call an operator of this library.
template <class Op>
typename Op::Result call(const Op& args) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow((std::string("xformers::") + Op::kName).c_str(), "")
                             .template typed<typename Signature<Op>::Function>();
  return Signature<Op>::call(op, args);
}

// ---- the schema ----
inline std::string default_text(const c10::SymInt& value) { return std::to_string(value.expect_int()); }
inline std::string default_text(int64_t value) { return std::to_string(value); }
inline std::string default_text(bool value) { return value ? "True" : "False"; }
std::string default_text(double value);
std::string default_text(std::string_view value);
template <class T>
std::string default_text(const T&) {  // tensors and lists have none
  return "";
}
template <class T>
std::string default_text(const std::optional<T>& value) {
  return value ? default_text(*value) : "None";
}

std::string join_arguments(std::vector<std::string> types, const std::vector<std::string>& names,
                           const std::vector<std::string>& defaults, const std::vector<bool>& keywords);

// A result, contiguous and not yet written; of shape [0] where nobody wants it.
at::Tensor empty_result(c10::SymIntArrayRef sizes, const at::TensorOptions& options, bool wanted = true);
inline at::Tensor empty_result(const at::Tensor& like, bool wanted = true) {
  return empty_result(like.sym_sizes(), like.options(), wanted);
}

// Names of several results, in an operator's kResults: "(Tensor out, Tensor lse)".
template <class Op>
std::string result_text() {
  using Result = typename Op::Result;
  if constexpr (std::is_void_v<Result>) {
    return "()";
  } else if constexpr (std::is_same_v<Result, at::Tensor>) {
    return "Tensor";
  } else if constexpr (std::is_same_v<Result, std::vector<at::Tensor>>) {
    return "Tensor[]";
  } else {
    std::string text;
    for (const char* name : Op::kResults) text += (text.empty() ? "(Tensor " : ", Tensor ") + std::string(name);
    static_assert(std::size(Op::kResults) == std::tuple_size_v<Result>);
    return text + ")";
  }
}

template <class Op>
std::string schema_of() {
  const Op defaults{};
  std::vector<std::string> types, names, texts;
  std::vector<bool> keywords;
  char alias = 'a';
  const auto add = [&](const auto& argument) {
    std::string type = ArgumentType<typename std::decay_t<decltype(argument)>::Type>::name;
    if (argument.is_written) {
      type += '(';
      type += alias++;
      type += "!)";
    }
    types.push_back(std::move(type));
    names.emplace_back(argument.name);
    texts.push_back(argument.is_required ? "" : default_text(defaults.*argument.member));
    keywords.push_back(argument.is_keyword);
  };
  std::apply([&](const auto&... arguments) { (add(arguments), ...); }, kArguments<Op>);
  return std::string(Op::kName) + "(" + join_arguments(std::move(types), names, texts, keywords) + ") -> " +
         result_text<Op>();
}

// ---- registration ----
template <class Body>
struct BodyTraits;
template <class R, class T>
struct BodyTraits<R (*)(T&)> {
  using Op = std::remove_const_t<T>;
};

// kBody(const Op& args) is what the operator does under the library's dispatch key; kBody(Op& args) may change them.
template <auto kBody>
void implement(torch::Library& m) {
  using Op = typename BodyTraits<decltype(kBody)>::Op;
  m.impl(Op::kName, &Signature<Op>::template entry<kBody>);
}

template <class Op>
typename Op::Result without_data(const Op& args) {
  args.check();
  return args.empty();
}

// Schemas; and for operators with an empty() of their own, what they are on meta tensors.
template <class... Ops>
void define(torch::Library& m) {
  const auto define_one = [&]<class Op>(std::type_identity<Op>) {
    std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
    if constexpr (requires { Op::kTag; }) tags.push_back(Op::kTag);
    m.def(schema_of<Op>().c_str(), std::as_const(tags));
    if constexpr (requires(const Op& args) { args.empty(); }) {
      m.impl(Op::kName, torch::dispatch(c10::DispatchKey::Meta, &Signature<Op>::template entry<without_data<Op>>));
    }
  };
  (define_one(std::type_identity<Ops>()), ...);
}

// ---- autocast ----
// The region of a call: casts what the operator wants in its dtype, or in another. Under it autocast is off.
class AutocastRegion {
 public:
  explicit AutocastRegion(c10::DeviceType device)
      : device_(device),
        no_autocast_(at::autocast::get_autocast_dispatch_key_from_device_type(device)),
        dtype_(at::autocast::get_autocast_dtype(device)) {}

  at::ScalarType dtype() const { return dtype_; }
  at::Tensor cast(const at::Tensor& t, at::ScalarType dtype) const {
    return at::autocast::cached_cast(dtype, t, device_);
  }
  void operator()(at::Tensor& t) const { t = cast(t, dtype_); }
  void operator()(OptionalTensor& t) const {
    if (t) t = cast(*t, dtype_);
  }

 private:
  c10::DeviceType device_;
  c10::impl::ExcludeDispatchKeyGuard no_autocast_;
  at::ScalarType dtype_;
};

template <auto kCast>
struct Autocast;
template <class Op, void (*kCast)(Op& args, const AutocastRegion& region)>
struct Autocast<kCast> {
  template <c10::DeviceType kDevice>
  static typename Op::Result body(const Op& given) {
    const AutocastRegion region(kDevice);
    Op args = given;
    kCast(args, region);
    return call(args);
  }
  static void implement(torch::Library& m) {
    m.impl(Op::kName,
           torch::dispatch(c10::DispatchKey::AutocastCPU, &Signature<Op>::template entry<body<c10::DeviceType::CPU>>));
    m.impl(Op::kName, torch::dispatch(c10::DispatchKey::AutocastCUDA,
                                      &Signature<Op>::template entry<body<c10::DeviceType::CUDA>>));
  }
};

// kCast(Op& args, region) puts the arguments in the dtypes that they have under autocast, on every device.
template <auto kCast>
void implement_autocast(torch::Library& m) {
  Autocast<kCast>::implement(m);
}

}  // namespace xformers::ops
