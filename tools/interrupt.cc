#include "tools/interrupt.h"

#include <csignal>
#include <initializer_list>

namespace sluice::tools {

namespace {

std::atomic<bool> interrupted{false};

}  // namespace

const std::atomic<bool>& NoteInterrupts() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = true; };
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before {};
    const bool ignored =
        sigaction(signal, nullptr, &before) == 0 && before.sa_handler == SIG_IGN;  // nohup
    if (!ignored) sigaction(signal, &action, nullptr);
  }
  return interrupted;
}

bool Interrupted() { return interrupted; }

}  // namespace sluice::tools
