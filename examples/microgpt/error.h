#pragma once

#include "examples/common/error.h"

namespace microgpt {

using examples::Error;

}  // namespace microgpt
