// What can be added to the scores, or hide them: bias types, and what each lowers to (layout x band x score bias).
//
// To add one: a struct in the header of its layout, its lower() beside it.
#pragma once

#include "xformers/ops/attention/attn_bias/attention_bias.h"  // any of them
#include "xformers/ops/attention/attn_bias/block_diagonal.h"
#include "xformers/ops/attention/attn_bias/block_sparse.h"
#include "xformers/ops/attention/attn_bias/gappy_keys.h"
#include "xformers/ops/attention/attn_bias/padded_keys.h"
#include "xformers/ops/attention/attn_bias/paged.h"
#include "xformers/ops/attention/attn_bias/whole_matrix.h"
