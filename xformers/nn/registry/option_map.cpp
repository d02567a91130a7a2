#include "xformers/nn/registry/option_map.h"

#include <cmath>

#include "xformers/kernels/base/check.h"

namespace xformers::nn {
namespace {

[[noreturn]] void wrong_type(const char* name, const c10::IValue& value, const char* expected) {
  fail({"options", name, "a " + value.tagKind(), expected, "give it another value, or leave it out for the default"});
}

}  // namespace

void read_option(const char* name, const c10::IValue& value, int64_t& result) {
  if (value.isDouble() && std::trunc(value.toDouble()) == value.toDouble()) {
    result = static_cast<int64_t>(value.toDouble());
  } else if (value.isInt()) {
    result = value.toInt();
  } else {
    wrong_type(name, value, "a whole number");
  }
}

void read_option(const char* name, const c10::IValue& value, double& result) {
  if (!value.isDouble() && !value.isInt()) wrong_type(name, value, "a number");
  result = value.isInt() ? static_cast<double>(value.toInt()) : value.toDouble();
}

void read_option(const char* name, const c10::IValue& value, bool& result) {
  if (!value.isBool()) wrong_type(name, value, "true or false");
  result = value.toBool();
}

void read_option(const char* name, const c10::IValue& value, std::string& result) {
  if (!value.isString()) wrong_type(name, value, "a text");
  result = value.toStringRef();
}

void read_option(const char* name, const c10::IValue& value, std::vector<int64_t>& result) {
  if (!value.isIntList()) wrong_type(name, value, "a list of whole numbers");
  result = value.toIntVector();
}

void read_option(const char* name, const c10::IValue& value, at::Tensor& result) {
  if (!value.isTensor()) wrong_type(name, value, "a tensor");
  result = value.toTensor();
}

}  // namespace xformers::nn
