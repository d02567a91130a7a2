#include "examples/common/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "examples/common/error.h"

namespace examples {
namespace {

namespace fs = std::filesystem;

// An open file that reports what failed and leaves nothing behind.
class File {
 public:
  File(std::string path, int flags)
      : path_(std::move(path)), descriptor_(open(path_.c_str(), flags | O_CLOEXEC, 0644)) {
    if (descriptor_ < 0) fail("create");
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() {
    if (descriptor_ >= 0) close(descriptor_);
  }

  void write_all(std::string_view contents) {
    while (!contents.empty()) {
      const ssize_t written = write(descriptor_, contents.data(), contents.size());
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) fail("write");
      contents.remove_prefix(static_cast<size_t>(written));
    }
  }

  void sync() {
    if (fsync(descriptor_) != 0 && errno != EINVAL && errno != ENOTSUP) fail("write");  // devices cannot be synced
  }

  void close_now() {
    if (close(std::exchange(descriptor_, -1)) != 0) fail("write");
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw Error(fmt::format("cannot {} {}: {}", what, path_, std::strerror(errno)));
  }

  std::string path_;
  int descriptor_;
};

}  // namespace

void write_file_atomically(const std::string& path, std::string_view contents) {
  std::error_code ignored;
  const fs::file_status status = fs::status(path, ignored);
  if (fs::is_directory(status)) throw Error(fmt::format("cannot write {}: it is a folder", path));
  if (fs::exists(status) && !fs::is_regular_file(status)) {
    File file(path, O_WRONLY);
    file.write_all(contents);
    return file.sync();
  }
  // Through symbolic links, so that a link stays one.
  const fs::path target = fs::exists(status) ? fs::canonical(path) : fs::absolute(path);
  const fs::path folder = target.parent_path();
  const std::string temporary = target.string() + ".tmp";
  try {
    File file(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    file.write_all(contents);
    file.sync();
    file.close_now();
    if (rename(temporary.c_str(), target.c_str()) != 0) {
      throw Error(fmt::format("cannot replace {}: {}", target.string(), std::strerror(errno)));
    }
  } catch (...) {
    unlink(temporary.c_str());
    throw;
  }
  // The rename itself reaches the disk with the folder.
  if (const int descriptor = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); descriptor >= 0) {
    fsync(descriptor);
    close(descriptor);
  }
}

}  // namespace examples
