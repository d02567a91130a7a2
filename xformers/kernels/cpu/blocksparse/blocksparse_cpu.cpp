#include "xformers/kernels/cpu/blocksparse/blocksparse_cpu.h"

#include "xformers/kernels/cpu/base/isa_fn.h"
#include "xformers/kernels/params/checks.h"
#include "xformers/kernels/params/csr_check.h"

namespace xformers::cpu {

XFORMERS_DECLARE_FOR_ISAS(void block_sdd(const BlockSddParams& params, const Threads& threads);
                          void block_dsd(const BlockDsdParams& params, const Threads& threads);
                          void block_softmax_forward(const BlockSoftmaxFwdParams& params, const Threads& threads);
                          void block_softmax_backward(const BlockSoftmaxBwdParams& params, const Threads& threads);)

namespace {

void check_layout(const char* where, const BlockLayout& layout) {
  const CsrPattern pattern{layout.heads * layout.block_rows, layout.block_columns, layout.nnz, layout.row_offsets,
                           layout.column_indices};
  std::string text = pattern_objection(where, pattern);
  if (text.empty() && layout.places) {
    text = list_objection(where, "perm", layout.places, layout.nnz, layout.nnz, "they number the blocks");
  }
  if (!text.empty()) throw Error(text);
}

bool is_empty(int64_t batch, const BlockLayout& layout) { return batch == 0 || layout.nnz == 0; }

}  // namespace

void block_sdd(const BlockSddParams& params, const Threads& threads) {
  check(params);
  check_layout("blocksparse_sdd", params.layout);
  if (!is_empty(params.batch, params.layout)) XFORMERS_BY_PLAIN_ISA(block_sdd)(params, threads);
}

void block_dsd(const BlockDsdParams& params, const Threads& threads) {
  check(params);
  check_layout("blocksparse_dsd", params.layout);
  if (params.batch > 0 && params.width > 0) XFORMERS_BY_PLAIN_ISA(block_dsd)(params, threads);
}

void block_softmax_forward(const BlockSoftmaxFwdParams& params, const Threads& threads) {
  check(params);
  check_layout("blocksparse_softmax", params.layout);
  if (!is_empty(params.batch, params.layout)) XFORMERS_BY_PLAIN_ISA(block_softmax_forward)(params, threads);
}

void block_softmax_backward(const BlockSoftmaxBwdParams& params, const Threads& threads) {
  check(params);
  check_layout("blocksparse_softmax_backward", params.layout);
  if (!is_empty(params.batch, params.layout)) XFORMERS_BY_PLAIN_ISA(block_softmax_backward)(params, threads);
}

}  // namespace xformers::cpu
