#include "xformers/kernels/cuda/blocksparse/blocksparse_cuda.h"
#include "xformers/kernels/cuda/blocksparse/product_args.h"
#include "xformers/kernels/params/checks.h"

namespace xformers::cuda {
namespace {

bool is_multiple_of_16_bytes(int64_t elements, DType dtype) {
  return elements * static_cast<int64_t>(size_of(dtype)) % 16 == 0;
}
bool begins_at_16_bytes(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// Of a matrix whose element (x, k) lies at these strides.
ProductSide side_of(const HeadMatrices& m, int64_t x_stride, int64_t k_stride, DType dtype) {
  ProductSide side{.data = m.data,
                   .batch_stride = m.batch_stride,
                   .head_stride = m.head_stride,
                   .x_stride = x_stride,
                   .k_stride = k_stride,
                   .x_contiguous = k_stride != 1};
  const int64_t other = side.x_contiguous ? k_stride : x_stride;
  side.aligned = begins_at_16_bytes(m.data) && is_multiple_of_16_bytes(m.batch_stride, dtype) &&
                 is_multiple_of_16_bytes(m.head_stride, dtype) && is_multiple_of_16_bytes(other, dtype);
  return side;
}

void run_product(DType dtype, const BlockProductArgs& args, const Stream& where) {
  switch (dtype) {
    case DType::kBFloat16: return block_product_bf16(args, where);
    case DType::kFloat16: return block_product_fp16(args, where);
    case DType::kFloat32: return block_product_fp32(args, where);
    case DType::kFloat64: return block_product_fp64(args, where);
  }
}

}  // namespace

void block_sdd(const BlockSddParams& p, const Stream& where) {
  check(p);
  if (p.batch == 0 || p.layout.nnz == 0 || p.layout.heads * p.layout.block_rows * p.layout.block_columns == 0) return;
  run_product(p.dtype,
              {.layout = p.layout,
               .sdd = true,
               .batch = p.batch,
               .depth = p.depth,
               .a = side_of(p.a, p.a.row_stride, p.a.column_stride, p.dtype),
               .b = side_of(p.b, p.b.column_stride, p.b.row_stride, p.dtype),
               .out = p.out,
               .out_vectors = begins_at_16_bytes(p.out)},
              where);
}

void block_dsd(const BlockDsdParams& p, const Stream& where) {
  check(p);
  if (p.batch == 0 || p.width == 0 || p.layout.heads * p.layout.block_rows == 0) return;
  const int64_t block = p.layout.block;
  const HeadMatrices values{.data = const_cast<void*>(p.values), .batch_stride = p.layout.nnz * block * block};
  run_product(p.dtype,
              {.layout = p.layout,
               .sdd = false,
               .batch = p.batch,
               .width = p.width,
               .a = p.transposed_blocks ? side_of(values, 1, block, p.dtype) : side_of(values, block, 1, p.dtype),
               .b = side_of(p.b, p.b.column_stride, p.b.row_stride, p.dtype),
               .out = p.out,
               .out_vectors = begins_at_16_bytes(p.out) && is_multiple_of_16_bytes(p.width, p.dtype)},
              where);
}

}  // namespace xformers::cuda
