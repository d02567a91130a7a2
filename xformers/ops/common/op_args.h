// An operator's argument list, stated once: a struct of values, and its members in the order of the schema. From these
// follow the operator's C++ signature, the kernels' entry points and the call.
//
//   struct ScaleArgs { at::Tensor x; double factor = 1; };
//   using ScaleOp = Operator<ScaleArgs, at::Tensor, &ScaleArgs::x, &ScaleArgs::factor>;
//   at::Tensor scale_cpu(const ScaleArgs& args);
//   m.impl("scale", ScaleOp::entry<scale_cpu>);
//   ScaleOp::call(ScaleOp::find("xformers::scale"), {.x = x});
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <type_traits>
#include <utility>

#include "xformers/ops/common/check.h"

namespace xformers::ops {

// How LibTorch passes an argument of type T.
template <class T>
struct PassedAs {
  using type = T;
};
template <>
struct PassedAs<at::Tensor> {
  using type = const at::Tensor&;
};
template <>
struct PassedAs<OptionalTensor> {
  using type = const OptionalTensor&;
};

template <class Member>
struct MemberOf;
template <class Args, class T>
struct MemberOf<T Args::*> {
  using type = T;
};
template <class Member>
inline constexpr bool is_tensor_member = std::is_same_v<typename MemberOf<Member>::type, at::Tensor> ||
                                         std::is_same_v<typename MemberOf<Member>::type, OptionalTensor>;

template <class Args, class Result, auto... kMembers>
struct Operator {
  template <auto kMember>
  using Passed = typename PassedAs<typename MemberOf<decltype(kMember)>::type>::type;
  using Signature = Result(Passed<kMembers>...);
  using Handle = c10::TypedOperatorHandle<Signature>;
  static constexpr int kNumTensors = (0 + ... + int{is_tensor_member<decltype(kMembers)>});

  static Handle find(const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Signature>();
  }

  template <Result (*kBody)(const Args&)>
  static Result entry(Passed<kMembers>... values) {
    Args args;
    ((args.*kMembers = std::forward<Passed<kMembers>>(values)), ...);
    return kBody(args);
  }

  static Result call(const Handle& handle, const Args& args) { return handle.call(args.*kMembers...); }

  // fn(member pointer) for each argument, in order.
  template <class Fn>
  static void for_each_member(const Fn& fn) {
    (fn(kMembers), ...);
  }
};

}  // namespace xformers::ops
