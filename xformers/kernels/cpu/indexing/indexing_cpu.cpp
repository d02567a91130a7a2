#include "xformers/kernels/cpu/indexing/indexing_cpu.h"

#include <string>

#include "xformers/kernels/cpu/base/isa_fn.h"
#include "xformers/kernels/cpu/indexing/row_groups.h"
#include "xformers/kernels/params/checks.h"
#include "xformers/kernels/params/index_check.h"

namespace xformers::cpu {

XFORMERS_DECLARE_FOR_ISAS(
    void gather(DType dtype, const RowSelection& selection, const Threads& threads);
    void scatter_sum(DType dtype, const RowSelection& selection, const RowGroups& groups, const Threads& threads);
    void scaled_index_add(const ScaledIndexAddParams& params, const RowGroups& groups, const Threads& threads);
    void scaled_index_add_backward(const ScaledIndexAddBwdParams& params, const Threads& threads);)

namespace {

void check_index(const char* where, const std::string& name, const int64_t* index, int64_t count, int64_t rows) {
  if (const std::string text = index_objection(where, name, index, count, rows); !text.empty()) throw Error(text);
}

void check_indices(const IndexSelectCatParams& params) {
  check(params);
  for (int64_t i = 0; i < params.num_selections; ++i) {
    const RowSelection& s = params.selections[i];
    check_index("index_select_cat", "indices[" + std::to_string(i) + "]", s.index, s.num_rows, s.source_rows);
  }
}

}  // namespace

void index_select_cat(const IndexSelectCatParams& params, const Threads& threads) {
  check_indices(params);
  const auto gather = XFORMERS_BY_ISA(params.dtype, gather);
  for (int64_t i = 0; i < params.num_selections; ++i) gather(params.dtype, params.selections[i], threads);
}

void index_select_cat_backward(const IndexSelectCatParams& params, const Threads& threads) {
  check_indices(params);
  const auto scatter_sum = XFORMERS_BY_ISA(params.dtype, scatter_sum);
  for (int64_t i = 0; i < params.num_selections; ++i) {
    const RowSelection& s = params.selections[i];
    const RowGrouping grouping(s.index, s.num_rows, s.source_rows);
    scatter_sum(params.dtype, s, grouping.groups(), threads);
  }
}

void scaled_index_add(const ScaledIndexAddParams& params, const Threads& threads) {
  check(params, WeightTypes::kCompute);
  check_index("scaled_index_add", "index", params.index, params.num_indices, params.rows);
  const RowGrouping grouping(params.index, params.num_indices, params.rows);
  XFORMERS_BY_ISA(params.dtype, scaled_index_add)(params, grouping.groups(), threads);
}

void scaled_index_add_backward(const ScaledIndexAddBwdParams& params, const Threads& threads) {
  check(params, WeightTypes::kCompute);
  check_index("scaled_index_add_backward", "index", params.index, params.num_indices, params.rows);
  XFORMERS_BY_ISA(params.dtype, scaled_index_add_backward)(params, threads);
}

}  // namespace xformers::cpu
