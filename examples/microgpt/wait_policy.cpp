#include "examples/microgpt/wait_policy.h"

#include <unistd.h>

#include <cstdlib>

namespace microgpt {

void let_waiting_threads_sleep(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") || std::getenv("GOMP_SPINCOUNT")) return;
  setenv("OMP_WAIT_POLICY", "passive", /*overwrite=*/0);
  execv("/proc/self/exe", argv);  // returns only where that fails; then they spin
}

}  // namespace microgpt
