// What a run has done so far: part of the checkpoint, so that a resumed run reports its whole curve, and of the report.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

namespace microgpt {

struct Point {
  int64_t step = 0;    // updates made before this loss was measured
  double seconds = 0;  // of the run, without interruptions
  double bits_per_byte = 0;
};

struct History {
  int64_t step = 0;        // updates made
  double seconds = 0;      // spent, over all sessions
  int64_t evals_done = 0;  // of those that are due while training
  std::vector<Point> train, validation;
};

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Point, step, seconds, bits_per_byte)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(History, step, seconds, evals_done, train, validation)

}  // namespace microgpt
