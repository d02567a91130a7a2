// The classes that the registries have from the beginning.
#pragma once

#include "xformers/nn/registry/registry.h"

namespace xformers::nn {

void add_attentions(Registry& registry);
void add_feedforwards(Registry& registry);
void add_positional_embeddings(Registry& registry);

}  // namespace xformers::nn
