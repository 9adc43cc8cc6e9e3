// tools/interrupt.h
//
// Ctrl-C of a command that has something to clean up: it is asked, and ends by itself.
//
// Threads: one command at a time.

#ifndef SLUICE_TOOLS_INTERRUPT_H_
#define SLUICE_TOOLS_INTERRUPT_H_

#include <atomic>

namespace sluice::tools {

// From now on SIGINT, SIGTERM and SIGHUP are only noted: the flag says so. A second one ends the
// process.
const std::atomic<bool>& NoteInterrupts();
bool Interrupted();

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_INTERRUPT_H_
