// tools/interrupt.h
//
// Ctrl-C of a command that has something to clean up: it is asked, and ends by itself.
//
// Threads: one command at a time.

#ifndef SLUICE_TOOLS_INTERRUPT_H_
#define SLUICE_TOOLS_INTERRUPT_H_

namespace sluice::tools {

// From now on SIGINT and SIGTERM are only noted; a second one ends the process.
void NoteInterrupts();
bool Interrupted();

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_INTERRUPT_H_
