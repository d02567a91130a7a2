#include "examples/microgpt/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "examples/microgpt/child_process.h"
#include "examples/microgpt/error.h"

namespace microgpt {
namespace {

namespace fs = std::filesystem;

Bytes read_file(const fs::path& path) {
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  Bytes bytes{std::istreambuf_iterator<char>(in), {}};
  if (!in.is_open() || in.bad()) throw Error(fmt::format("cannot read {}: {}", path.string(), std::strerror(errno)));
  return bytes;
}

// Text has no zero bytes; nearly every other kind of file has some.
bool is_text(const Bytes& bytes) { return std::find(bytes.begin(), bytes.end(), 0) == bytes.end(); }

void append(Text& text, const Bytes& bytes) {
  const auto split = bytes.end() - static_cast<std::ptrdiff_t>(bytes.size() / 10);
  text.train.insert(text.train.end(), bytes.begin(), split);
  text.validation.insert(text.validation.end(), split, bytes.end());
  for (uint8_t byte : bytes) text.fingerprint = (text.fingerprint ^ byte) * 0x100000001b3u;  // FNV-1a
  ++text.files;
}

// Files below `root` that `wanted` takes, in an order that does not depend on the file system; other folders' contents
// are not looked at where `entered` says no.
template <class Wanted, class Entered>
std::vector<fs::path> files_below(const fs::path& root, Wanted wanted, Entered entered) {
  std::vector<fs::path> files;
  try {
    for (auto it = fs::recursive_directory_iterator(root); it != fs::recursive_directory_iterator(); ++it) {
      if (it->is_directory()) {
        if (!entered(it->path())) it.disable_recursion_pending();
      } else if (it->is_regular_file() && wanted(it->path())) {
        files.push_back(it->path());
      }
    }
  } catch (const fs::filesystem_error& error) {
    throw Error(fmt::format("cannot list {}: {}", error.path1().string(), error.code().message()));
  }
  std::sort(files.begin(), files.end());
  return files;
}

void add_path(Text& text, const fs::path& path) {
  std::error_code ignored;
  const fs::file_status status = fs::status(path, ignored);
  if (!fs::exists(status)) {
    throw Error(fmt::format("there is no file or folder {}.  Fix: pass readable text to --text", path.string()));
  }
  if (fs::is_directory(status)) {  // takes what is text and leaves the rest
    const auto not_hidden = [](const fs::path& p) { return !p.filename().string().starts_with('.'); };
    for (const fs::path& file : files_below(path, not_hidden, not_hidden)) {
      if (Bytes bytes = read_file(file); is_text(bytes)) append(text, bytes);
    }
  } else if (fs::is_regular_file(status)) {
    Bytes bytes = read_file(path);
    if (!is_text(bytes)) {
      throw Error(fmt::format("{} is not text: byte {} is zero.  Fix: pass plain text to --text", path.string(),
                              std::find(bytes.begin(), bytes.end(), 0) - bytes.begin()));
    }
    append(text, bytes);
  } else {
    throw Error(fmt::format("{} is not a regular file.  Fix: pass files or folders to --text", path.string()));
  }
}

void add_standard_library(Text& text, const std::string& python) {
  const char* fix = "Fix: name an interpreter with --python, or your own text with --text";
  const ChildResult answer = run_child({python, "-c", "import sysconfig; print(sysconfig.get_path('stdlib'), end='')"});
  if (answer.exit_code != 0) {
    throw Error(fmt::format("cannot ask '{}' where its standard library is.  {}", python, fix));
  }
  // Not the library's own prose: tests, installed packages, and folders of tables.
  static const std::set<std::string> kSkipped = {"test",        "tests",     "site-packages", "dist-packages",
                                                 "__pycache__", "encodings", "pydoc_data",    "idlelib"};
  const fs::path root = answer.out;
  const auto files = files_below(
      root, [](const fs::path& p) { return p.extension() == ".py"; },
      [](const fs::path& p) { return !kSkipped.contains(p.filename().string()); });
  for (const fs::path& file : files) {
    if (Bytes bytes = read_file(file); is_text(bytes)) append(text, bytes);
  }
  if (text.files == 0)
    throw Error(fmt::format("the standard library in {} has no source files.  {}", root.string(), fix));
  text.source = root.string();
}

}  // namespace

Text load_text(const TextOptions& options) {
  Text text;
  text.fingerprint = 0xcbf29ce484222325u;
  if (options.paths.empty()) {
    add_standard_library(text, options.python);
    return text;
  }
  for (const std::string& path : options.paths) {
    add_path(text, path);
    text.source += (text.source.empty() ? "" : ", ") + path;
  }
  return text;
}

}  // namespace microgpt
