// Lets a model write.
#pragma once

#include <string>

#include "examples/microgpt/model.h"
#include "examples/microgpt/options.h"

namespace microgpt {

// The prompt and `bytes` more, each drawn from the model's prediction.
std::string sample(Gpt& model, const ComputeOptions& compute, const SampleOptions& options);

}  // namespace microgpt
