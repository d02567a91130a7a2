// Ctrl-C and a polite kill end the run after the current step; a second one ends it at once.
#pragma once

namespace microgpt {

void catch_stop_signals();
int stop_signal();  // the signal that came, else 0

}  // namespace microgpt
