#include "xformers/ops/common/cpu_only.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>

#include <string>

namespace xformers::ops {
namespace {

void refuse(const c10::OperatorHandle& op, torch::jit::Stack* arguments) {
  std::string device = "no device";
  for (const c10::IValue& argument : torch::jit::last(*arguments, op.schema().arguments().size())) {
    if (argument.isTensor() && argument.toTensor().defined()) device = argument.toTensor().device().str();
  }
  const std::string& name = op.schema().name();
  TORCH_CHECK_NOT_IMPLEMENTED(false, name.substr(name.rfind(':') + 1), ": the tensors are on ", device,
                              ", expected cpu: it has no kernels on other devices yet.  Fix: move them with .cpu().");
}

}  // namespace

void refuse_other_devices(torch::Library& m, std::initializer_list<const char*> operators) {
  for (const char* name : operators) m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse>());
}

}  // namespace xformers::ops
