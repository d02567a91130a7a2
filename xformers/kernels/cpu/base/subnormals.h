// Numbers smaller than any normal one taken for 0, in arithmetic and in its results, while an object lives: processors
// are a hundred times slower with them.
#pragma once

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace xformers::cpu {

class SubnormalsAreZero {
 public:
  __attribute__((always_inline)) explicit SubnormalsAreZero([[maybe_unused]] bool wanted) {
#if defined(__SSE2__)
    constexpr unsigned kInputs = 0x0040, kResults = 0x8000;
    before_ = _mm_getcsr();
    if (wanted) _mm_setcsr(before_ | kInputs | kResults);
#endif
  }
  __attribute__((always_inline)) ~SubnormalsAreZero() {
#if defined(__SSE2__)
    _mm_setcsr(before_);
#endif
  }
  SubnormalsAreZero(const SubnormalsAreZero&) = delete;
  SubnormalsAreZero& operator=(const SubnormalsAreZero&) = delete;

 private:
  [[maybe_unused]] unsigned before_ = 0;
};

}  // namespace xformers::cpu
