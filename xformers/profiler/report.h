// One page, and the same as JSON, about a run: what bounds the step, how far everything is from the device's limits,
// where time and memory go, and how the ranks differ.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "xformers/profiler/device_limits.h"
#include "xformers/profiler/ranks.h"

namespace xformers::profiler {

// As JSON text. The traces are those of find_traces(folder); rows of `limits` come before the library's own.
// Throws Error where no trace can be read.
std::string report_json(const std::filesystem::path& folder, const std::vector<DeviceLimit>& limits);

// The page that shows it: one file that loads nothing.
std::string report_html(const std::string& json);

// Writes report.json and report.html into the folder; returns the page's path.
std::filesystem::path write_report(const std::filesystem::path& folder, const std::vector<DeviceLimit>& limits);

}  // namespace xformers::profiler
