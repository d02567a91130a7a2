// Which instruction set the memory-bound kernels run on. They need plain vectors only (and the rounding to bf16), so
// four compilations serve all machines.
#pragma once

#include "xformers/kernels/cpu/base/cpu_features.h"

namespace xformers::cpu {

// The highest of kPortable, kAvx2, kAvx512 and kAvx512Bf16 that this processor has and XFORMERS_CPU_ISA allows. Throws
// xformers::Error when XFORMERS_CPU_ISA names none that it has.
Isa vector_isa();

template <class Fn>
Fn pick_by_isa(Fn portable, Fn avx2, Fn avx512, Fn avx512_bf16) {
  switch (vector_isa()) {
    case Isa::kPortable: return portable;
    case Isa::kAvx2: return avx2;
    case Isa::kAvx512: return avx512;
    default: return avx512_bf16;
  }
}

// XFORMERS_BY_ISA(fn)(args...): the compilation of `fn` for this machine; each lies in a namespace isa_<name>.
#if defined(XFORMERS_X86_KERNELS)
#define XFORMERS_BY_ISA(fn) pick_by_isa(&isa_portable::fn, &isa_avx2::fn, &isa_avx512::fn, &isa_avx512_bf16::fn)
#define XFORMERS_FOR_EACH_VECTOR_ISA(declare) \
  declare(isa_portable) declare(isa_avx2) declare(isa_avx512) declare(isa_avx512_bf16)
#else
#define XFORMERS_BY_ISA(fn) (&isa_portable::fn)
#define XFORMERS_FOR_EACH_VECTOR_ISA(declare) declare(isa_portable)
#endif

}  // namespace xformers::cpu
