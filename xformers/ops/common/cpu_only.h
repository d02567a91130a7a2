// Operators that have kernels on the CPU alone.
#pragma once

#include <torch/library.h>

#include <initializer_list>

namespace xformers::ops {

// On any other device each of these operators says in one sentence (NotImplementedError) that it has no kernel there.
void refuse_other_devices(torch::Library& m, std::initializer_list<const char*> operators);

}  // namespace xformers::ops
