// Text that a model wrote, fit to be shown.
#pragma once

#include <string>

namespace examples {

// For a terminal or JSON: UTF-8 stays, bytes that are none and control characters become \xNN.
std::string printable(const std::string& bytes);

}  // namespace examples
