// Real text as bytes: the user's files, or the sources of a Python standard library.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "examples/microgpt/options.h"

namespace microgpt {

using Bytes = std::vector<uint8_t>;

// The last tenth of every file is validation text and the rest is for training: the same split on every run, with any
// number of files, and a file's share does not depend on the others.
struct Text {
  std::string source;  // for people
  int64_t files = 0;
  Bytes train, validation;
  uint64_t fingerprint = 0;  // of all bytes, to notice that a run goes on with other text
};

Text load_text(const TextOptions& options);

}  // namespace microgpt
