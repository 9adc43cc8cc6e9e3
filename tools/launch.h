// tools/launch.h
//
// `sluice launch`: starts the ranks of a script. The launcher is part of the Python package; this
// finds an interpreter and becomes it. It reads nothing of the command line but what names that.

#ifndef SLUICE_TOOLS_LAUNCH_H_
#define SLUICE_TOOLS_LAUNCH_H_

#include <span>

#include "tools/output.h"

namespace sluice::tools {

inline constexpr const char* kLaunch = "launch";
inline constexpr const char* kLaunchAbout =
    "Start the ranks of a script by torchrun, under the flags of the `deepspeed` launcher.";

// `arguments` are those after "launch", and nothing after them (as main() has them). The
// interpreter is that of a leading --python, or else SLUICE_PYTHON, or else python3 on PATH.
// Returns only if it can't be run.
ExitCode Launch(std::span<const char* const> arguments);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_LAUNCH_H_
