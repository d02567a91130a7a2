// What the user may choose.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "examples/llama/generate.h"

namespace llama {

struct Options {
  std::string model;                 // a folder or a checkpoint of microgpt
  std::vector<std::string> prompts;  // text, for models of bytes
  std::vector<Tokens> prompt_tokens;
  int64_t tokens = 200;
  Sampling sampling;
  uint64_t seed = 1;
  int64_t capacity = 0;   // tokens of each text in the cache; 0: the longest prompt and `tokens`
  int64_t page_size = 0;  // 0: padded
  bool verify = false;
  std::string device = "auto", dtype = "auto";
  int threads = 0;     // 0: one per core
  std::string report;  // empty: none
};

struct ParsedOptions {
  bool run = false;   // false: the program has said what it had to say and ends with `exit_code`
  int exit_code = 0;  // not 0: the options were wrong
  Options options;
};

ParsedOptions parse_options(int argc, char** argv);

}  // namespace llama
