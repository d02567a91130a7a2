#include "xformers/kernels/cuda/product/cublaslt.h"

#include <dlfcn.h>

#include <array>
#include <mutex>
#include <string>

#include "xformers/kernels/cuda/base/cuda_check.h"

namespace xformers::cuda {
namespace lt {
namespace {

// Of the CUDA 13 or 12 that PyTorch was built for.
void* loaded() {
  void* const newer = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_NOLOAD);
  return newer ? newer : dlopen("libcublasLt.so.12", RTLD_NOW | RTLD_NOLOAD);
}

struct Found {
  Library library;
  bool complete = true;

  Found() {
    void* const file = loaded();
    const auto find = [&]<class Function>(Function& function, const char* name) {
      function = file ? reinterpret_cast<Function>(dlsym(file, name)) : nullptr;
      complete &= function != nullptr;
    };
    find(library.create, "cublasLtCreate");
    find(library.product_create, "cublasLtMatmulDescCreate");
    find(library.product_destroy, "cublasLtMatmulDescDestroy");
    find(library.product_set, "cublasLtMatmulDescSetAttribute");
    find(library.layout_create, "cublasLtMatrixLayoutCreate");
    find(library.layout_destroy, "cublasLtMatrixLayoutDestroy");
    find(library.preference_create, "cublasLtMatmulPreferenceCreate");
    find(library.preference_destroy, "cublasLtMatmulPreferenceDestroy");
    find(library.preference_set, "cublasLtMatmulPreferenceSetAttribute");
    find(library.propose, "cublasLtMatmulAlgoGetHeuristic");
    find(library.matmul, "cublasLtMatmul");
  }
};

}  // namespace

const Library* library() {
  static const Found found;
  return found.complete ? &found.library : nullptr;
}

}  // namespace lt

namespace {

void check(int status, const char* call) {
  if (status == lt::kSuccess) return;
  throw DeviceError("cuda: " + std::string(call) + " gave status " + std::to_string(status) +
                    ", expected success.  Fix: XFORMERS_MEASURE_PRODUCTS=0 leaves products to PyTorch");
}

lt::Handle handle() {  // of the current device, kept until the process ends
  static std::array<lt::Handle, 64> handles;
  static std::array<std::once_flag, 64> created;
  int device = 0;
  XFORMERS_CUDA_CHECK(cudaGetDevice(&device));
  std::call_once(created.at(device), [&] { check(lt::library()->create(&handles[device]), "cublasLtCreate"); });
  return handles[device];
}

lt::Product* new_product(const ProductParams& p) {
  lt::Product* made = nullptr;
  check(lt::library()->product_create(&made, lt::kCompute32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  const auto set = [&](lt::ProductAttribute attribute, auto value) {
    check(lt::library()->product_set(made, attribute, &value, sizeof(value)), "cublasLtMatmulDescSetAttribute");
  };
  set(lt::kTransposeFirst, int{p.b.transposed});
  set(lt::kTransposeSecond, int{p.a.transposed});
  if (p.bias) {
    set(lt::kEpilogue, lt::kEpilogueBias);
    set(lt::kBiasPointer, p.bias);
  }
  return made;
}

// Of a matrix [rows, columns] whose rows lie one behind the other: cuBLAS takes them for columns.
lt::Layout* new_layout(DType dtype, int64_t rows, int64_t columns, int64_t stride) {
  lt::Layout* made = nullptr;
  check(lt::library()->layout_create(&made, dtype == DType::kBFloat16 ? CUDA_R_16BF : CUDA_R_16F,
                                     static_cast<uint64_t>(columns), static_cast<uint64_t>(rows), stride),
        "cublasLtMatrixLayoutCreate");
  return made;
}
lt::Layout* new_layout(DType dtype, int64_t rows, int64_t columns, const ProductOperand& operand) {
  return operand.transposed ? new_layout(dtype, columns, rows, operand.stride)
                            : new_layout(dtype, rows, columns, operand.stride);
}

}  // namespace

LtProduct::LtProduct(const ProductParams& p)
    : params_(p),
      product_(new_product(p), lt::library()->product_destroy),
      b_(new_layout(p.dtype, p.k, p.n, p.b), lt::library()->layout_destroy),
      a_(new_layout(p.dtype, p.m, p.k, p.a), lt::library()->layout_destroy),
      out_(new_layout(p.dtype, p.m, p.n, p.n), lt::library()->layout_destroy) {}

std::vector<lt::Algorithm> LtProduct::proposals(int most) const {
  const lt::Library& library = *lt::library();
  lt::Preference* made = nullptr;
  check(library.preference_create(&made), "cublasLtMatmulPreferenceCreate");
  const Owned<lt::Preference> preference(made, library.preference_destroy);
  const size_t no_workspace = 0;
  check(library.preference_set(made, lt::kMostWorkspaceBytes, &no_workspace, sizeof(no_workspace)),
        "cublasLtMatmulPreferenceSetAttribute");
  std::vector<lt::Proposal> found(most);
  int count = 0;
  if (library.propose(handle(), product_.get(), b_.get(), a_.get(), out_.get(), out_.get(), made, most, found.data(),
                      &count) != lt::kSuccess) {
    return {};  // it knows none
  }
  std::vector<lt::Algorithm> result;
  for (int i = 0; i < count; ++i) {
    if (found[i].status == lt::kSuccess) result.push_back(found[i].algorithm);
  }
  return result;
}

bool LtProduct::run(const lt::Algorithm& algorithm, cudaStream_t stream) const {
  const float one = 1, zero = 0;
  return lt::library()->matmul(handle(), product_.get(), &one, params_.b.data, b_.get(), params_.a.data, a_.get(),
                               &zero, params_.out, out_.get(), params_.out, out_.get(), &algorithm, nullptr, 0,
                               stream) == lt::kSuccess;
}

}  // namespace xformers::cuda
