#include "xformers/kernels/cpu/base/cpu_features.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace xformers::cpu {
namespace {

#if defined(__x86_64__)

uint32_t xcr0() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// Linux hands the tile registers only to processes that ask for them (arch_prctl ARCH_REQ_XCOMP_PERM, component 18).
bool request_amx_tiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

CpuFeatures detect() {
  CpuFeatures features;
  uint32_t a, b, c, d;
  if (!__get_cpuid(0, &a, &b, &c, &d)) return features;
  features.is_intel = b == 0x756e6547u;  // "Genu"
  const auto bit = [](uint32_t word, int index) { return (word >> index & 1u) != 0; };

  __get_cpuid(1, &a, &b, &c, &d);
  const bool fma = bit(c, 12), f16c = bit(c, 29), os_saves_state = bit(c, 27);
  if (!os_saves_state) return features;
  const uint32_t saved = xcr0();
  const bool ymm_saved = (saved & 0x6u) == 0x6u, zmm_saved = (saved & 0xe6u) == 0xe6u;
  const bool tiles_saved = (saved & 0x60000u) == 0x60000u;

  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
  const uint32_t last_subleaf = a;
  features.avx2 = bit(b, 5) && bit(b, 3) && bit(b, 8) && fma && f16c && ymm_saved;
  features.avx512 = features.avx2 && bit(b, 16) && bit(b, 17) && bit(b, 28) && bit(b, 30) && bit(b, 31) && zmm_saved;
  features.avx512_fp16 = features.avx512 && bit(d, 23);
  const bool amx = bit(d, 22) && bit(d, 24) && tiles_saved;
  if (last_subleaf >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) features.avx512_bf16 = features.avx512 && bit(a, 5);
  features.amx_bf16 = amx && features.avx512_bf16 && request_amx_tiles();
  return features;
}

#else

CpuFeatures detect() { return {}; }

#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

bool has_isa(Isa isa) {
  const CpuFeatures& features = cpu_features();
  switch (isa) {
    case Isa::kPortable: return true;
    case Isa::kAvx2: return features.avx2;
    case Isa::kAvx512: return features.avx512;
    case Isa::kAvx512Bf16: return features.avx512_bf16;
    case Isa::kAvx512Fp16: return features.avx512_fp16;
    case Isa::kAmx: return features.amx_bf16;
  }
  return false;
}

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::kPortable: return "portable";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx512Bf16: return "avx512_bf16";
    case Isa::kAvx512Fp16: return "avx512_fp16";
    case Isa::kAmx: return "amx";
  }
  return "?";
}

}  // namespace xformers::cpu
