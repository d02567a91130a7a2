// The instruction sets that kernels are compiled for: XFORMERS_FOR_EACH_ISA(declare) says declare(isa_<name>) for each,
// whether this build has it or not (isa_choice.h knows).
#pragma once

#define XFORMERS_FOR_EACH_ISA(declare) XFORMERS_FOR_EACH_VECTOR_ISA(declare) declare(isa_avx512_fp16) declare(isa_amx)
// The memory-bound kernels need plain vectors only (and the rounding to bf16), so four compilations serve all machines.
#define XFORMERS_FOR_EACH_VECTOR_ISA(declare) \
  declare(isa_portable) declare(isa_avx2) declare(isa_avx512) declare(isa_avx512_bf16)
