// The part of cuBLASLt's documented C interface that is used here, by functions looked up in the library that the
// process has loaded: PyTorch brings it, and building needs neither the library nor its headers.
#pragma once

#include <cuda_runtime_api.h>
#include <library_types.h>

#include <cstddef>
#include <cstdint>

namespace xformers::cuda::lt {

using Handle = void*;
struct Product;     // opaque: what is computed
struct Layout;      // of one matrix
struct Preference;  // what proposals must keep to
struct Algorithm {
  uint64_t data[8];
};
struct Proposal {
  Algorithm algorithm;
  size_t workspace_bytes;
  int status;
  float waves;
  int reserved[4];
};

enum ProductAttribute : int { kTransposeFirst = 3, kTransposeSecond = 4, kEpilogue = 7, kBiasPointer = 8 };
enum PreferenceAttribute : int { kMostWorkspaceBytes = 1 };
inline constexpr int kSuccess = 0, kCompute32F = 68, kEpilogueBias = 4;

struct Library {
  int (*create)(Handle*);
  int (*product_create)(Product**, int compute_type, cudaDataType scale_type);
  int (*product_destroy)(Product*);
  int (*product_set)(Product*, ProductAttribute, const void* value, size_t bytes);
  int (*layout_create)(Layout**, cudaDataType type, uint64_t rows, uint64_t columns, int64_t stride);
  int (*layout_destroy)(Layout*);
  int (*preference_create)(Preference**);
  int (*preference_destroy)(Preference*);
  int (*preference_set)(Preference*, PreferenceAttribute, const void* value, size_t bytes);
  int (*propose)(Handle, Product*, Layout* a, Layout* b, Layout* c, Layout* d, Preference*, int most, Proposal*,
                 int* count);
  int (*matmul)(Handle, Product*, const void* alpha, const void* a, Layout*, const void* b, Layout*, const void* beta,
                const void* c, Layout*, void* d, Layout*, const Algorithm*, void* workspace, size_t workspace_bytes,
                cudaStream_t stream);
};

const Library* library();  // null where the process has none

}  // namespace xformers::cuda::lt
