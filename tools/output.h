// tools/output.h
//
// How every command speaks: pages of sections whose rows line up, and exit codes. A page is made
// whole and written at once, so that nothing half is printed if something fails on the way.

#ifndef SLUICE_TOOLS_OUTPUT_H_
#define SLUICE_TOOLS_OUTPUT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/types.h"

namespace sluice::tools {

enum ExitCode : int {
  kDone = 0,
  kFailed = 1,  // what was asked for can't be done here
  kUsage = 2    // it was not understood
};

class Page {
 public:
  void Section(std::string title);
  // A value that is too long for one line goes on `hang` columns right of its beginning.
  void Row(std::string label, std::string value, size_t hang = 0);
  // A numbered list under a title of its own; nothing if there is nothing to list.
  void List(std::string title, const std::vector<std::string>& items);

  std::string Text() const;

 private:
  struct Line {
    std::string label;
    std::string value;
    size_t hang;
  };
  struct Block {
    std::string title;
    std::vector<Line> lines;
  };
  std::vector<Block> blocks_;
};

// "1.2 GiB"; where there is no limit, "no limit".
std::string BudgetText(Bytes budget);

// "6.7 billion", "124.4 million", "4096".
std::string CountText(int64_t count);

// `text` to stdout. kFailed, and the reason to stderr, if it did not all get there.
ExitCode Print(std::string_view text);

// "sluice: `message`" to stderr. Always kFailed.
ExitCode Fail(std::string_view message);

// Where stderr is a terminal, how far it is: one line there, which is gone at the end.
class Progress {
 public:
  Progress();
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Show(double part, std::string_view what) const;  // part: from 0 to 1

 private:
  const bool shown_;
};

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_OUTPUT_H_
