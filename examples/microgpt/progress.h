// Shows how far a run is: a bar that redraws itself on a terminal, elsewhere a line now and then.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace microgpt {

class Progress {
 public:
  struct View {
    double fraction = 0;  // of the run
    int64_t step = 0;
    double bits_per_byte = 0;
    double tokens_per_second = 0;
    double seconds_left = 0;
  };

  Progress();
  ~Progress();
  void show(const View& view);
  void message(const std::string& line);  // above the bar

 private:
  void clear();

  bool terminal_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point next_;  // when to draw again
};

}  // namespace microgpt
