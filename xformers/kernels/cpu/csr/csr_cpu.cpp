#include "xformers/kernels/cpu/csr/csr_cpu.h"

#include <algorithm>

#include "xformers/kernels/cpu/base/isa_fn.h"
#include "xformers/kernels/params/checks.h"
#include "xformers/kernels/params/csr_check.h"

namespace xformers::cpu {

XFORMERS_DECLARE_FOR_ISAS(void csr_sddmm(const CsrSddmmParams& params, const Threads& threads);
                          void csr_spmm(const CsrSpmmParams& params, const Threads& threads);
                          void csr_softmax_forward(const CsrSoftmaxFwdParams& params, int64_t longest_row,
                                                   const Threads& threads);
                          void csr_softmax_backward(const CsrSoftmaxBwdParams& params, const Threads& threads);)

namespace {

void refuse(const std::string& objection) {
  if (!objection.empty()) throw Error(objection);
}

int64_t longest_row_of(const CsrPattern& p) {
  int64_t longest = 0;
  for (int64_t r = 0; r < p.rows; ++r) longest = std::max<int64_t>(longest, p.row_offsets[r + 1] - p.row_offsets[r]);
  return longest;
}

}  // namespace

void csr_sddmm(const CsrSddmmParams& params, const Threads& threads) {
  check(params);
  refuse(pattern_objection("sddmm", params.pattern));
  if (params.batch > 0 && params.pattern.nnz > 0) XFORMERS_BY_PLAIN_ISA(csr_sddmm)(params, threads);
}

void csr_spmm(const CsrSpmmParams& params, const Threads& threads) {
  check(params);
  refuse(pattern_objection("spmm", params.pattern));
  if (params.places) {
    refuse(list_objection("spmm", "perm", params.places, params.pattern.nnz, params.pattern.nnz,
                          "they number the values"));
  }
  if (params.batch > 0 && params.pattern.rows > 0 && params.width > 0) XFORMERS_BY_PLAIN_ISA(csr_spmm)(params, threads);
}

void csr_softmax_forward(const CsrSoftmaxFwdParams& params, const Threads& threads) {
  check(params);
  refuse(offsets_objection("sparse_softmax", params.pattern));
  if (params.batch > 0 && params.pattern.nnz > 0) {
    XFORMERS_BY_PLAIN_ISA(csr_softmax_forward)(params, longest_row_of(params.pattern), threads);
  }
}

void csr_softmax_backward(const CsrSoftmaxBwdParams& params, const Threads& threads) {
  check(params);
  refuse(offsets_objection("sparse_softmax_backward", params.pattern));
  if (params.batch > 0 && params.pattern.nnz > 0) XFORMERS_BY_PLAIN_ISA(csr_softmax_backward)(params, threads);
}

// A counting sort, stable.
void csr_transpose(const CsrTransposeParams& params) {
  const CsrPattern& p = params.pattern;
  check(params);
  refuse(pattern_objection("csr_transpose", p));
  int32_t* const offsets = params.column_offsets;
  std::fill(offsets, offsets + p.columns + 1, 0);
  for (int64_t i = 0; i < p.nnz; ++i) ++offsets[p.column_indices[i] + 1];
  for (int64_t c = 0; c < p.columns; ++c) offsets[c + 1] += offsets[c];
  // offsets[c] is where column c's next one goes; at the end it has become offsets[c + 1].
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int32_t i = p.row_offsets[r]; i < p.row_offsets[r + 1]; ++i) {
      const int32_t to = offsets[p.column_indices[i]]++;
      params.row_indices[to] = static_cast<int32_t>(r);
      params.places[to] = i;
    }
  }
  for (int64_t c = p.columns; c > 0; --c) offsets[c] = offsets[c - 1];
  offsets[0] = 0;
}

}  // namespace xformers::cpu
