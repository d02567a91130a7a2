#include "examples/microgpt/stop_signal.h"

#include <csignal>

namespace microgpt {
namespace {

volatile std::sig_atomic_t received = 0;
void remember(int signal) { received = signal; }

}  // namespace

void catch_stop_signals() {
  struct sigaction action = {};
  action.sa_handler = remember;
  action.sa_flags = SA_RESETHAND | SA_RESTART;  // back to the default after the first
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  std::signal(SIGXFSZ, SIG_IGN);  // a file size limit shows as a failed write
}

int stop_signal() { return received; }

}  // namespace microgpt
