// Gathering and scattering rows on the CPU. Each call checks the indices first and throws xformers::Error, before it
// writes anything, when one is out of range. Results do not depend on the number of threads.
#pragma once

#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/params/indexing.h"

namespace xformers::cpu {

void index_select_cat(const IndexSelectCatParams& params, const Threads& threads);
void index_select_cat_backward(const IndexSelectCatParams& params, const Threads& threads);
void scaled_index_add(const ScaledIndexAddParams& params, const Threads& threads);
void scaled_index_add_backward(const ScaledIndexAddBwdParams& params, const Threads& threads);

}  // namespace xformers::cpu
