// Files that are there whole or not at all.
#pragma once

#include <string>
#include <string_view>

namespace examples {

// Writes beside `path`, forces it to the disk, then renames: whatever goes wrong, `path` keeps its old contents or has
// the new ones. Throws Error with the reason. A `path` that is no regular file (a device, a pipe) is written to
// directly.
void write_file_atomically(const std::string& path, std::string_view contents);

}  // namespace examples
