#include "xformers/profiler/trace_reader.h"

#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>

namespace xformers::profiler {
namespace {

// ---- characters ----
// A source of text in parts; an empty part ends it.
class Text {
 public:
  virtual ~Text() = default;
  std::string_view next() {
    const std::string_view part = read();
    ended_ = part.empty();
    return part;
  }
  bool ended() const { return ended_; }  // somebody has asked for more than there is

 private:
  virtual std::string_view read() = 0;
  bool ended_ = false;
};

class GivenText : public Text {
 public:
  explicit GivenText(std::string_view text) : text_(text) {}

 private:
  std::string_view read() override { return std::exchange(text_, {}); }
  std::string_view text_;
};

// zlib's own files: plain ones pass through.
class FileText : public Text {
 public:
  explicit FileText(const std::filesystem::path& path) : file_(gzopen(path.c_str(), "rb")), part_(kPart, '\0') {
    if (file_) gzbuffer(file_, 1 << 18);
  }
  ~FileText() override {
    if (file_) gzclose(file_);
  }
  FileText(const FileText&) = delete;
  FileText& operator=(const FileText&) = delete;

  bool is_open() const { return file_ != nullptr; }

 private:
  std::string_view read() override {
    const int size = gzread(file_, part_.data(), kPart);
    return {part_.data(), size > 0 ? static_cast<size_t>(size) : 0};
  }
  static constexpr unsigned kPart = 1 << 18;
  gzFile file_;
  std::string part_;
};

// What the parser reads. Control characters are blanks and bytes beyond ASCII question marks: the parser refuses what
// is no UTF-8, and names of kernels and operators have neither.
class Characters {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = char;

  explicit Characters(Text* text) : text_(text) {
    if (text_) refill();
  }
  char operator*() const {
    const auto c = static_cast<unsigned char>(*at_);
    return c < 0x20 ? ' ' : c < 0x80 ? *at_ : '?';
  }
  Characters& operator++() {
    if (++at_ == end_) refill();
    return *this;
  }
  Characters operator++(int) {
    Characters before = *this;
    ++*this;
    return before;
  }
  bool operator==(const Characters& other) const { return at_ == other.at_; }

 private:
  void refill() {
    const std::string_view part = text_->next();
    at_ = part.empty() ? nullptr : part.data();
    end_ = at_ + part.size();
  }

  Text* text_;
  const char *at_ = nullptr, *end_ = nullptr;
};

// ---- events ----
// Where the parser stands: the keys and arrays that lead to a value.
enum class Place : uint8_t { kRoot, kEvents, kEvent, kArgs, kDims, kTypes, kValues, kDistributed, kDevices, kOther };

class Handler {
 public:
  Handler(const Text& text, TraceInfo& info, const OnEvent& on_event) : text_(text), info_(info), on_event_(on_event) {}

  bool null() { return scalar(""); }
  bool boolean(bool value) { return scalar(value ? "True" : "False"); }
  bool number_integer(int64_t value) { return number(static_cast<double>(value), value); }
  bool number_unsigned(uint64_t value) {
    return number(static_cast<double>(value), static_cast<int64_t>(std::min<uint64_t>(value, INT64_MAX)));
  }
  bool number_float(double value, const std::string&) { return number(value, static_cast<int64_t>(value)); }
  bool string(std::string& value) { return scalar(value); }
  bool binary(nlohmann::json::binary_t&) { return true; }
  bool key(std::string& value) {
    key_.swap(value);
    return true;
  }

  bool start_object(size_t) {
    Place place = Place::kOther;
    if (stack_.empty()) {
      place = Place::kRoot;
    } else if (stack_.back() == Place::kEvents) {
      place = Place::kEvent;
      event_.clear();
      phase_.clear();
      process_.clear();
      dims_.clear();
      types_.clear();
      values_.clear();
    } else if (stack_.back() == Place::kEvent && key_ == "args") {
      place = Place::kArgs;
    } else if (stack_.back() == Place::kRoot && key_ == "distributedInfo") {
      place = Place::kDistributed;
    } else if (stack_.back() == Place::kDevices) {
      place = Place::kDevices;
      ++devices_;
    }
    stack_.push_back(place);
    return true;
  }
  bool end_object() {
    const Place place = stack_.back();
    stack_.pop_back();
    if (place == Place::kEvent) finish();
    return true;
  }

  bool start_array(size_t) {
    Place place = Place::kOther;
    if (stack_.empty()) {
      place = Place::kEvents;  // the older form: a list of events alone
    } else if (stack_.back() == Place::kRoot && key_ == "traceEvents") {
      place = Place::kEvents;
    } else if (stack_.back() == Place::kRoot && key_ == "deviceProperties") {
      place = Place::kDevices;
    } else if (stack_.back() == Place::kArgs && key_ == "Input Dims") {
      place = Place::kDims;
    } else if (stack_.back() == Place::kArgs && key_ == "Input type") {
      place = Place::kTypes;
    } else if (stack_.back() == Place::kArgs && key_ == "Concrete Inputs") {
      place = Place::kValues;
    } else if (stack_.back() == Place::kDims) {  // [[2, 3], [], [[4, 5], [6, 7]]]
      place = Place::kDims;
      const auto depth = std::count(stack_.begin(), stack_.end(), Place::kDims);
      if (depth == 1) dims_.emplace_back(1);
      if (depth == 2) {
        if (dims_.back().size() == 1 && dims_.back()[0].empty()) dims_.back().clear();
        dims_.back().emplace_back();
      }
    }
    stack_.push_back(place);
    return true;
  }
  bool end_array() {
    stack_.pop_back();
    return true;
  }

  bool parse_error(size_t position, const std::string& token, const nlohmann::detail::exception&) {
    const std::string at = std::to_string(position);
    const std::string what = position <= 1 && text_.ended() ? "is empty"
                             : text_.ended()
                                 ? "is cut off after " + at + " characters"
                                 : "is no JSON from character " + at + " on (\"" + token.substr(0, 20) + "\")";
    info_.problem =
        info_.path + " " + what + ", expected a whole trace; " +
        (info_.events ? "the " + std::to_string(info_.events) + " events before are used" : "it has no events");
    return false;
  }

 private:
  Place place() const { return stack_.empty() ? Place::kOther : stack_.back(); }

  bool scalar(const std::string& text) {
    switch (place()) {
      case Place::kEvent:
        if (key_ == "name") event_.name = text;
        if (key_ == "cat") event_.category = text;
        if (key_ == "ph") phase_ = text;
        if (key_ == "pid") process_ = text;
        if (key_ == "tid") thread_ = text;
        break;
      case Place::kTypes: types_.push_back(text); break;
      case Place::kValues: values_.push_back(text); break;
      case Place::kRoot:
        if (key_ == "traceName") info_.name = text;
        break;
      case Place::kDevices:
        if (key_ == "name" && devices_ == 1) info_.device = text;
        break;
      default: break;
    }
    return true;
  }

  bool number(double value, int64_t integer) {
    switch (place()) {
      case Place::kEvent:
        if (key_ == "ts") event_.start = value;
        if (key_ == "dur") event_.duration = value;
        if (key_ == "pid") process_ = std::to_string(integer);
        if (key_ == "tid") thread_ = std::to_string(integer);
        break;
      case Place::kArgs:
        if (key_ == "correlation") event_.correlation = integer;
        if (key_ == "External id") event_.external_id = integer;
        if (key_ == "Sequence number") event_.sequence = integer;
        if (key_ == "Fwd thread id") event_.forward_thread = integer;
        if (key_ == "Bytes") event_.bytes = integer;
        if (key_ == "Total Allocated") event_.total_allocated = integer;
        if (key_ == "Device Id") event_.device = integer;
        break;
      case Place::kDims:
        if (!dims_.empty() && !dims_.back().empty()) dims_.back().back().push_back(integer);
        break;
      case Place::kTypes: types_.push_back(""); break;
      case Place::kValues: values_.push_back(std::to_string(integer)); break;
      case Place::kDistributed:
        if (key_ == "rank") info_.rank = static_cast<int>(integer);
        if (key_ == "world_size") info_.world_size = static_cast<int>(integer);
        break;
      case Place::kDevices:
        if (key_ == "computeMajor" && devices_ == 1) info_.major = static_cast<int>(integer);
        if (key_ == "computeMinor" && devices_ == 1) info_.minor = static_cast<int>(integer);
        break;
      default: break;
    }
    return true;
  }

  void finish() {
    const bool is_allocation = event_.name == "[memory]";
    if (phase_ != "X" && !is_allocation) return;
    ++info_.events;
    process_ += '/';
    process_ += thread_;
    event_.thread = threads_.emplace(process_, static_cast<int>(threads_.size())).first->second;
    if (event_.category == "cpu_op" && find_cost_rule(event_.name)) {
      for (size_t i = 0; i < std::max(types_.size(), dims_.size()); ++i) {
        Argument& argument = event_.arguments.emplace_back();
        const std::string type = i < types_.size() ? types_[i] : "";
        const bool is_tensor = !type.empty() && !type.starts_with("Scalar");
        if (is_tensor) {
          argument.type = type;
          if (i < dims_.size()) argument.shapes = dims_[i];
        }
        if (i < values_.size()) argument.value = values_[i];
      }
    }
    on_event_(event_);
  }

  const Text& text_;
  TraceInfo& info_;
  const OnEvent& on_event_;
  std::vector<Place> stack_;
  std::string key_, phase_, process_, thread_;
  TraceEvent event_;
  std::vector<std::vector<Shape>> dims_;
  std::vector<std::string> types_, values_;
  std::unordered_map<std::string, int> threads_;
  int devices_ = 0;
};

void read(Text& text, TraceInfo& info, const OnEvent& on_event) {
  Handler handler(text, info, on_event);
  nlohmann::json::sax_parse(Characters(&text), Characters(nullptr), &handler);
}

}  // namespace

void TraceEvent::clear() {
  name.clear();
  category.clear();
  start = duration = 0;
  thread = 0;
  correlation = external_id = sequence = -1;
  forward_thread = bytes = 0;
  total_allocated = device = -1;
  arguments.clear();
}

TraceInfo read_trace(const std::filesystem::path& path, const OnEvent& on_event) {
  TraceInfo info;
  info.path = path.string();
  FileText text(path);
  if (text.is_open()) {
    read(text, info, on_event);
  } else {
    info.problem = info.path + " cannot be read: " + std::strerror(errno);
  }
  return info;
}

TraceInfo read_trace_text(std::string_view given, const OnEvent& on_event) {
  TraceInfo info;
  info.path = "the trace";
  GivenText text(given);
  read(text, info, on_event);
  return info;
}

}  // namespace xformers::profiler
