// A function of one instruction set, or of the one for this machine.
#pragma once

#include "xformers/kernels/base/dtype.h"
#include "xformers/kernels/cpu/base/built_isas.h"  // made by CMake (../isas.cmake)
#include "xformers/kernels/cpu/base/isa_choice.h"

namespace xformers::cpu {

// The best for this machine of the compilations that were built, null where not. avx512_bf16 has code for bf16 alone.
template <class Fn>
Fn pick_by_isa(DType dtype, Fn portable, Fn avx2, Fn avx512, Fn avx512_bf16) {
  const Isa isa = vector_isa();
  if (isa >= Isa::kAvx512Bf16 && dtype == DType::kBFloat16 && avx512_bf16) return avx512_bf16;
  if (isa >= Isa::kAvx512 && avx512) return avx512;
  return isa >= Isa::kAvx2 && avx2 ? avx2 : portable;
}

// XFORMERS_DECLARE_FOR_ISAS(declarations): of the functions that every compilation of a unit x_isa.cpp has.
#define XFORMERS_DECLARE_FOR_ISAS(...) \
  namespace isa_portable {             \
  __VA_ARGS__                          \
  }                                    \
  namespace isa_avx2 {                 \
  __VA_ARGS__                          \
  }                                    \
  namespace isa_avx512 {               \
  __VA_ARGS__                          \
  }                                    \
  namespace isa_avx512_bf16 {          \
  __VA_ARGS__                          \
  }

// XFORMERS_ISA_FN(isa, fn): the compilation of `fn` for one set, in namespace isa_<isa>; nullptr where it is not built.
#define XFORMERS_ISA_FN(isa, fn) XFORMERS_BUILT_##isa(&isa_##isa::fn)

// XFORMERS_BY_ISA(dtype, fn)(args...): the compilation of `fn` for this machine and the element type.
#define XFORMERS_BY_ISA(dtype, fn)                                                                          \
  pick_by_isa<decltype(&isa_portable::fn)>(dtype, XFORMERS_ISA_FN(portable, fn), XFORMERS_ISA_FN(avx2, fn), \
                                           XFORMERS_ISA_FN(avx512, fn), XFORMERS_ISA_FN(avx512_bf16, fn))

// For units whose kernels gain nothing from the rounding to bf16: blocks.cmake compiles them for plain vectors alone.
#define XFORMERS_BY_PLAIN_ISA(fn)                                                                                     \
  pick_by_isa<decltype(&isa_portable::fn)>(DType::kFloat32, XFORMERS_ISA_FN(portable, fn), XFORMERS_ISA_FN(avx2, fn), \
                                           XFORMERS_ISA_FN(avx512, fn), nullptr)

}  // namespace xformers::cpu
