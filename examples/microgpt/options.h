// What the user may choose. Numbers that describe the model travel with the checkpoint (see checkpoint.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace microgpt {

struct ModelOptions {
  int64_t layers = 4;
  int64_t dim = 128;  // of the residual stream
  int64_t heads = 2;
  int64_t context = 256;  // bytes that a prediction may look back on
  double dropout = 0;     // of attention weights and of each branch's output

  bool operator==(const ModelOptions&) const = default;
};

struct TextOptions {
  std::vector<std::string> paths;  // files and folders; none: the standard library of `python`
  std::string python = "python3";
};

struct ComputeOptions {
  std::string attention = "ours";  // a name in attention.h
  int64_t block = 32;              // of attentions over blocks
  std::string device = "auto";     // auto, cpu, cuda
  std::string dtype = "auto";      // auto, float32, bfloat16 (autocast)
  std::string sparse24 = "none";   // of the feed-forward layers: a name in feed_forward.h
  int threads = 0;                 // 0: one per core
  bool checkpoint_blocks = false;  // blocks keep their inputs alone, and run again in backward
};

struct SampleOptions {
  std::string prompt = "def ";
  int64_t bytes = 400;
  double temperature = 0.7;
  int64_t top_k = 40;
  uint64_t seed = 1;
};

struct TrainOptions {
  ModelOptions model;
  TextOptions text;
  ComputeOptions compute;
  SampleOptions sample;
  int64_t batch = 8;       // windows of `context` bytes in a step
  int64_t steps = 0;       // 0: as many as fit into max_seconds
  double max_seconds = 0;  // 0: no limit; 120 where steps is 0 too
  double learning_rate = 4e-3;
  double weight_decay = 0.1;
  int64_t warmup_steps = 40;
  uint64_t seed = 1;
  std::string checkpoint;  // empty: none
  int64_t save_every = 100;
  bool resume = false, overwrite = false;
  int64_t evals = 12;         // validation measurements over the run
  int64_t eval_windows = 64;  // of `context` bytes each
  std::string report;         // empty: none
};

struct CompareOptions {
  ModelOptions model{.layers = 4, .dim = 256, .heads = 4, .context = 2048};
  TextOptions text;
  ComputeOptions compute;  // attention is set by the comparison
  int64_t batch = 1;
  int64_t steps = 4;   // timed in each process, after one untimed step
  int64_t rounds = 2;  // processes for each attention
  uint64_t seed = 1;
  std::string report;
};

// One subcommand with its options.
struct Options {
  enum class Command { kTrain, kSample, kCompare, kMeasure } command = Command::kTrain;
  TrainOptions train;      // kTrain; kSample reads `checkpoint`, `compute` and `sample` of it
  CompareOptions compare;  // kCompare; kMeasure: one process of the comparison
};

struct ParsedOptions {
  bool run = false;   // false: the program has said what it had to say and ends with `exit_code`
  int exit_code = 0;  // not 0: the options were wrong
  Options options;
};

ParsedOptions parse_options(int argc, char** argv);

}  // namespace microgpt
