// A run: learn, measure, save, report, write a sample.
#pragma once

#include "examples/microgpt/options.h"

namespace microgpt {

int train(const TrainOptions& options);         // exit code; 128 + n where signal n ended the run early
int write_sample(const TrainOptions& options);  // with the model of `options.checkpoint`

}  // namespace microgpt
