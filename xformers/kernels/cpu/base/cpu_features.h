// Which instruction sets this processor and its operating system offer.
#pragma once

namespace xformers::cpu {

// In rising order; a machine that has one has all before it, except kAvx512Bf16 which AMX machines also have.
enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAvx512Fp16, kAmx };
inline constexpr Isa kAllIsas[] = {Isa::kPortable,   Isa::kAvx2,       Isa::kAvx512,
                                   Isa::kAvx512Bf16, Isa::kAvx512Fp16, Isa::kAmx};

struct CpuFeatures {
  bool avx2 = false;         // AVX2, FMA, F16C
  bool avx512 = false;       // F, BW, CD, DQ, VL
  bool avx512_bf16 = false;  // vdpbf16ps
  bool avx512_fp16 = false;
  bool amx_bf16 = false;  // tiles, granted to this process by the kernel
  bool is_intel = false;
};

const CpuFeatures& cpu_features();  // detected once

bool has_isa(Isa isa);
const char* name_of(Isa isa);  // "portable", "avx2", "avx512", "avx512_bf16", "avx512_fp16", "amx"

}  // namespace xformers::cpu
