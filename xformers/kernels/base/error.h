// The one exception of the torch-free layer. It is an std::invalid_argument, so that it reaches Python as a ValueError.
#pragma once

#include <stdexcept>
#include <string>

namespace xformers {

// what() reads "<where>: <what came>, expected <what was expected>.  Fix: <how>".
class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

}  // namespace xformers
