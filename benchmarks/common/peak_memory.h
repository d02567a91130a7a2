// How much memory something needs at its peak, by the operating system's count.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

namespace xformers::bench {

// Resident memory in bytes now, and the most since reset_peak_memory().
int64_t resident_memory();
int64_t peak_memory();
bool reset_peak_memory();  // false where the system can't

// Calls measure() in a child process, so that no allocator's or thread's leftovers of other rows hide anything; call it
// before this process starts threads. Nothing if the child failed.
std::optional<double> in_child(const std::function<double()>& measure);

}  // namespace xformers::bench
