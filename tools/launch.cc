#include "tools/launch.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "core/config.h"
#include "fmt/format.h"

namespace sluice::tools {

namespace {

// What the interpreter is given: it looks into no current directory, where a script may be called
// like a module of Python's, and says what is missing before it imports anything.
constexpr const char* kProgram = R"(import sys
other = "; --python or SLUICE_PYTHON names another interpreter"
if sys.version_info < (3, 11):
    sys.exit("sluice: launch needs Python 3.11, and %s is %d.%d" % (sys.executable, *sys.version_info[:2]) + other)
sys.path[:] = [path for path in sys.path if path]
from importlib.util import find_spec
missing = [name for name in ("torch", "sluice") if find_spec(name) is None]
if missing:
    sys.exit("sluice: %s has no package %s" % (sys.executable, " and no package ".join(missing)) + other)
from sluice.launch.run import main
sys.exit(main(sys.argv[1:]))
)";

constexpr std::string_view kPython = "--python";

}  // namespace

ExitCode Launch(std::span<const char* const> arguments) {
  std::string python = GetEnv("SLUICE_PYTHON").value_or("python3");
  if (!arguments.empty()) {
    const std::string_view first = arguments.front();
    if (first.starts_with(kPython) && first.substr(kPython.size()).starts_with('=')) {
      python = first.substr(kPython.size() + 1);
      arguments = arguments.subspan(1);
    } else if (first == kPython) {
      if (arguments.size() < 2) {
        Fail("launch --python: names no interpreter");
        return kUsage;
      }
      python = arguments[1];
      arguments = arguments.subspan(2);
    }
  }
  std::vector<const char*> words = {python.c_str(), "-c", kProgram};
  words.insert(words.end(), arguments.begin(), arguments.end());
  words.push_back(nullptr);
  execvp(python.c_str(), const_cast<char* const*>(words.data()));
  return Fail(fmt::format(
      "launch: {}: {}; --python or SLUICE_PYTHON names the interpreter that has this package",
      python, std::strerror(errno)));
}

}  // namespace sluice::tools
