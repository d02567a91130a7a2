// What goes wrong for reasons outside the program: one clear sentence for the user, printed by main().
#pragma once

#include <stdexcept>

namespace examples {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace examples
