// Runs a program and reads what it prints.
#pragma once

#include <string>
#include <vector>

namespace microgpt {

struct ChildResult {
  int exit_code = 0;  // 127: the program could not be started; 128 + n: ended by signal n
  std::string out;    // standard output
};

// argv[0] is looked up in PATH. Standard error goes where ours goes.
ChildResult run_child(const std::vector<std::string>& argv);

}  // namespace microgpt
