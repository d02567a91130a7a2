// A run on disk: everything that the next step depends on.
#pragma once

#include <memory>
#include <string>

#include "examples/microgpt/history.h"
#include "examples/microgpt/trainer.h"

namespace microgpt {

// Weights, optimiser state, random state, history, sizes of the model and the text's fingerprint, in one file that is
// replaced whole or not at all. It may be read on another device than the one that it was written on.
void save_checkpoint(const std::string& path, Trainer& trainer, const History& history, uint64_t text_fingerprint);

struct Resumed {
  History history;
  uint64_t text_fingerprint = 0;
};

// Both throw Error where the file is missing, damaged or of another program; restore_checkpoint also where it holds
// another model than the trainer's.
Resumed restore_checkpoint(const std::string& path, Trainer& trainer);
std::shared_ptr<Gpt> load_model(const std::string& path, const ComputeOptions& compute);

}  // namespace microgpt
