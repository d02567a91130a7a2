// A function of one instruction set, or of the one for this machine.
#pragma once

#include "xformers/kernels/cpu/base/built_isas.h"  // made by CMake (../isas.cmake)
#include "xformers/kernels/cpu/base/isa_choice.h"

namespace xformers::cpu {

template <class Fn>
Fn pick_by_isa(Fn portable, Fn avx2, Fn avx512, Fn avx512_bf16) {
  switch (vector_isa()) {
    case Isa::kPortable: return portable;
    case Isa::kAvx2: return avx2;
    case Isa::kAvx512: return avx512;
    default: return avx512_bf16;
  }
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

// XFORMERS_BY_ISA(fn)(args...): the compilation of `fn` for this machine.
#define XFORMERS_BY_ISA(fn)                                                                          \
  pick_by_isa<decltype(&isa_portable::fn)>(XFORMERS_ISA_FN(portable, fn), XFORMERS_ISA_FN(avx2, fn), \
                                           XFORMERS_ISA_FN(avx512, fn), XFORMERS_ISA_FN(avx512_bf16, fn))

// For units whose kernels gain nothing from the rounding to bf16: blocks.cmake compiles them for plain vectors alone.
template <class Fn>
Fn pick_by_plain_isa(Fn portable, Fn avx2, Fn avx512) {
  const Isa isa = vector_isa();
  if (isa >= Isa::kAvx512 && avx512) return avx512;
  return isa >= Isa::kAvx2 && avx2 ? avx2 : portable;
}
#define XFORMERS_BY_PLAIN_ISA(fn)                                                                          \
  pick_by_plain_isa<decltype(&isa_portable::fn)>(XFORMERS_ISA_FN(portable, fn), XFORMERS_ISA_FN(avx2, fn), \
                                                 XFORMERS_ISA_FN(avx512, fn))

}  // namespace xformers::cpu
