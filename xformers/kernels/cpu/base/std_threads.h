// run_std_threads (parallel_for.h) with a say in how a thread is started. Not for units of one instruction set: std
// templates.
#pragma once

#include <functional>
#include <thread>

namespace xformers::cpu {

// A thread that runs `work`; throws where there can be none.
using StartThread = std::function<std::thread(std::function<void()> work)>;

// Workers that get no thread are run on the calling one, so a call is slower then, and not lost.
void run_started_threads(int num_workers, void (*body)(void* context, int worker), void* context,
                         const StartThread& start);

}  // namespace xformers::cpu
