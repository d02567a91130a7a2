// Some hypervisors show AMX in CPUID but hide leaf 0x1D, from which oneDNN reads the tile geometry; it then builds
// kernels with a geometry of zero and every bf16 matmul of PyTorch dies with SIGILL. On such a machine this library
// keeps oneDNN below AMX, before its first use. An ONEDNN_MAX_CPU_ISA that the user set is kept.
#if defined(__x86_64__)
#include <cpuid.h>

#include <cstdlib>

namespace {

bool amx_shown_without_tile_geometry() {
  constexpr unsigned kFeatures = 7, kTileInfo = 0x1D;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(kFeatures, 0, &eax, &ebx, &ecx, &edx)) return false;
  if (!(edx & (kAmxBf16 | kAmxTile | kAmxInt8))) return false;
  if (__get_cpuid_max(0, nullptr) < kTileInfo) return true;
  __cpuid_count(kTileInfo, 0, eax, ebx, ecx, edx);
  return eax == 0;  // number of tile palettes
}

const bool guard_set = [] {
  if (amx_shown_without_tile_geometry()) setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16", /*overwrite=*/0);
  return true;
}();

}  // namespace
#endif
