#include "examples/microgpt/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace microgpt {
namespace {

using Clock = std::chrono::steady_clock;

int terminal_width() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

std::string duration(double seconds) {
  const auto s = static_cast<int64_t>(std::clamp(seconds, 0.0, 1e9) + 0.5);
  return s < 3600 ? fmt::format("{}:{:02}", s / 60, s % 60)
                  : fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

}  // namespace

Progress::Progress() : terminal_(isatty(STDOUT_FILENO) == 1), next_(Clock::now()) {}

Progress::~Progress() { clear(); }

void Progress::clear() {
  if (drawn_) fmt::print("\r\x1b[K");
  drawn_ = false;
  std::fflush(stdout);
}

void Progress::show(const View& view) {
  if (Clock::now() < next_) return;
  next_ = Clock::now() + (terminal_ ? std::chrono::milliseconds(100) : std::chrono::seconds(10));
  const std::string numbers = fmt::format(" {:3.0f} %  step {}  loss {:.3f} bits  {:.1f}k tokens/s  {} left",
                                          100 * std::min(view.fraction, 1.0), view.step, view.bits_per_byte,
                                          view.tokens_per_second / 1000, duration(view.seconds_left));
  if (!terminal_) {
    fmt::print("{}\n", numbers);
    std::fflush(stdout);
    return;
  }
  const int cells = std::clamp(terminal_width() - static_cast<int>(numbers.size()) - 3, 0, 40);
  const int filled = static_cast<int>(cells * std::clamp(view.fraction, 0.0, 1.0));
  fmt::print("\r\x1b[K[{}{}]{}", std::string(static_cast<size_t>(filled), '='),
             std::string(static_cast<size_t>(cells - filled), ' '), numbers);
  std::fflush(stdout);
  drawn_ = true;
}

void Progress::message(const std::string& line) {
  clear();
  fmt::print("{}\n", line);
  std::fflush(stdout);
}

}  // namespace microgpt
