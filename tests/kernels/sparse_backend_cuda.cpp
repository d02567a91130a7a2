// The GPU: every array is copied to memory of its own, as large as it is, and results are copied back.
#include "tests/kernels/device_mirror.h"
#include "tests/kernels/sparse_backend.h"
#include "xformers/kernels/cuda/blocksparse/blocksparse_cuda.h"
#include "xformers/kernels/cuda/csr/csr_cuda.h"

namespace xformers::testing {
namespace {

size_t bytes(int64_t elements, DType dtype) { return static_cast<size_t>(elements) * size_of(dtype); }
size_t indices(int64_t count) { return static_cast<size_t>(count) * sizeof(int32_t); }

// visit(pointer, bytes) for every array of the parameters.
template <class Visit>
void visit_pattern(CsrPattern& p, const Visit& visit) {
  visit(p.row_offsets, indices(p.rows + 1));
  visit(p.column_indices, indices(p.nnz));
}
template <class Visit>
void visit_layout(BlockLayout& l, const Visit& visit) {
  visit(l.row_offsets, indices(l.heads * l.block_rows + 1));
  visit(l.column_indices, indices(l.nnz));
  visit(l.places, indices(l.nnz));
}
// Up to the last element of [batch, rows, width].
template <class Visit>
void visit_dense(DenseMatrices& m, int64_t batch, int64_t rows, int64_t width, DType dtype, const Visit& visit) {
  const bool some = batch * rows * width > 0;
  visit(m.data, bytes(some ? (batch - 1) * m.batch_stride + (rows - 1) * m.row_stride + width : 0, dtype));
}
template <class Visit>
void visit_heads(HeadMatrices& m, int64_t batch, int64_t heads, int64_t rows, int64_t columns, DType dtype,
                 const Visit& visit) {
  const bool some = batch * heads * rows * columns > 0;
  const int64_t last = (batch - 1) * m.batch_stride + (heads - 1) * m.head_stride + (rows - 1) * m.row_stride +
                       (columns - 1) * m.column_stride;
  visit(m.data, bytes(some ? last + 1 : 0, dtype));
}

template <class Visit>
void for_each_array(CsrSddmmParams& p, const Visit& visit) {
  visit_dense(p.a, p.batch, p.pattern.rows, p.depth, p.dtype, visit);
  visit_dense(p.b, p.batch, p.pattern.columns, p.depth, p.dtype, visit);
  visit(p.out, bytes(p.batch * p.pattern.nnz, p.dtype));
  visit_pattern(p.pattern, visit);
}
template <class Visit>
void for_each_array(CsrSpmmParams& p, const Visit& visit) {
  const int64_t nnz = p.pattern.nnz;
  visit(p.values, bytes(nnz > 0 ? (p.batch - 1) * p.values_stride + nnz : 0, p.dtype));
  visit(p.places, indices(nnz));
  visit_dense(p.dense, p.batch, p.pattern.columns, p.width, p.dtype, visit);
  visit_dense(p.out, p.batch, p.pattern.rows, p.width, p.dtype, visit);
  visit_pattern(p.pattern, visit);
}
template <class Visit>
void for_each_array(CsrSoftmaxFwdParams& p, const Visit& visit) {
  visit(p.values, bytes(p.batch * p.pattern.nnz, p.dtype));
  visit(p.out, bytes(p.batch * p.pattern.nnz, p.dtype));
  visit_pattern(p.pattern, visit);
}
template <class Visit>
void for_each_array(CsrSoftmaxBwdParams& p, const Visit& visit) {
  visit(p.out, bytes(p.batch * p.pattern.nnz, p.dtype));
  visit(p.dout, bytes(p.batch * p.pattern.nnz, p.dtype));
  visit(p.dx, bytes(p.batch * p.pattern.nnz, p.dtype));
  visit_pattern(p.pattern, visit);
}
int64_t stored(int64_t batch, const BlockLayout& l) { return batch * l.nnz * l.block * l.block; }
template <class Visit>
void for_each_array(BlockSddParams& p, const Visit& visit) {
  const BlockLayout& l = p.layout;
  visit_heads(p.a, p.batch, l.heads, l.block_rows * l.block, p.depth, p.dtype, visit);
  visit_heads(p.b, p.batch, l.heads, p.depth, l.block_columns * l.block, p.dtype, visit);
  visit(p.out, bytes(stored(p.batch, l), p.dtype));
  visit_layout(p.layout, visit);
}
template <class Visit>
void for_each_array(BlockDsdParams& p, const Visit& visit) {
  const BlockLayout& l = p.layout;
  visit(p.values, bytes(stored(p.batch, l), p.dtype));
  visit_heads(p.b, p.batch, l.heads, l.block_columns * l.block, p.width, p.dtype, visit);
  visit(p.out, bytes(p.batch * l.heads * l.block_rows * l.block * p.width, p.dtype));
  visit_layout(p.layout, visit);
}
template <class Visit>
void for_each_array(BlockSoftmaxFwdParams& p, const Visit& visit) {
  const BlockLayout& l = p.layout;
  visit(p.values, bytes(stored(p.batch, l), p.dtype));
  visit(p.out, bytes(stored(p.batch, l), p.dtype));
  visit_heads(p.bias, p.batch, l.heads, l.block_rows * l.block, l.block_columns * l.block, p.dtype, visit);
  visit_layout(p.layout, visit);
}
template <class Visit>
void for_each_array(BlockSoftmaxBwdParams& p, const Visit& visit) {
  for (auto* const pointer : {&p.out, &p.dout}) visit(*pointer, bytes(stored(p.batch, p.layout), p.dtype));
  visit(p.dx, bytes(stored(p.batch, p.layout), p.dtype));
  visit_layout(p.layout, visit);
}

template <class Params>
void run_on_device(const Params& host, void (*kernel)(const Params&, const cuda::Stream&)) {
  Params device = host;
  DeviceMirror mirror;
  for_each_array(device, [&](auto*& pointer, size_t size) { mirror.add(pointer, size); });
  mirror.upload();
  for_each_array(device, [&](auto*& pointer, size_t) { mirror.translate(pointer); });
  kernel(device, {});
  check(cudaDeviceSynchronize(), "the kernels");
  mirror.download();
}

}  // namespace

void for_each_sparse_backend(const std::function<void(const std::string& name)>& body) { body("cuda"); }

void run_sparse(const CsrSddmmParams& params) { run_on_device(params, cuda::csr_sddmm); }
void run_sparse(const CsrSpmmParams& params) { run_on_device(params, cuda::csr_spmm); }
void run_sparse(const CsrSoftmaxFwdParams& params) { run_on_device(params, cuda::csr_softmax_forward); }
void run_sparse(const CsrSoftmaxBwdParams& params) { run_on_device(params, cuda::csr_softmax_backward); }
void run_sparse(const BlockSddParams& params) { run_on_device(params, cuda::block_sdd); }
void run_sparse(const BlockDsdParams& params) { run_on_device(params, cuda::block_dsd); }
void run_sparse(const BlockSoftmaxFwdParams& params) { run_on_device(params, cuda::block_softmax_forward); }
void run_sparse(const BlockSoftmaxBwdParams& params) { run_on_device(params, cuda::block_softmax_backward); }

}  // namespace xformers::testing
