// Gathering, scattering and adding rows on the GPU. Plain C++; a call enqueues its kernels and does not wait.
//
// Indices lie in device memory and are not looked at here. One that is out of range reads and writes nothing: its rows
// of a result are NaN (index_select_cat) or 0 (dsource), and it adds nothing.
// Where an index repeats, its rows are added up in the order of their places: the same bits from run to run.
#pragma once

#include <cstddef>

#include "xformers/kernels/cuda/base/stream.h"
#include "xformers/kernels/params/indexing.h"

namespace xformers::cuda {

void index_select_cat(const IndexSelectCatParams& params, const Stream& where);

size_t index_select_cat_backward_workspace(const IndexSelectCatParams& params);
void index_select_cat_backward(const IndexSelectCatParams& params, const Stream& where);

size_t scaled_index_add_workspace(const ScaledIndexAddParams& params);
void scaled_index_add(const ScaledIndexAddParams& params, const Stream& where);

size_t scaled_index_add_backward_workspace(const ScaledIndexAddBwdParams& params);
void scaled_index_add_backward(const ScaledIndexAddBwdParams& params, const Stream& where);

}  // namespace xformers::cuda
