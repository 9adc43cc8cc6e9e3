// tools/tune_drives.h
//
// What `sluice tune` does with directories: looks at them, makes an unnamed file in each, tunes the
// drives one by one, and then all of them together. Nothing of it has a name, so nothing stays,
// whatever ends it.

#ifndef SLUICE_TOOLS_TUNE_DRIVES_H_
#define SLUICE_TOOLS_TUNE_DRIVES_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/types.h"
#include "nvme/tuned.h"
#include "nvme/tuner.h"
#include "tools/output.h"

namespace sluice::tools {

struct TuneOptions {
  std::vector<std::string> paths;  // at least one
  double seconds = 40;             // a path, at most
  Bytes write_max = GiB(16);       // to each path, at most
};

// What is known before anything is written.
struct TunePlan {
  struct Path {
    std::string path;
    Bytes file;  // its size
    std::vector<std::string> warnings;
  };
  std::vector<Path> paths;
};
// Errors: what a directory lacks, naming it; InvalidArgument if one comes twice or the options
// leave too little.
absl::StatusOr<TunePlan> PlanTune(const TuneOptions& options);

// Of a drive, or of all together.
struct TunedDrives {
  TunedSettings settings;
  double untuned_rate = 0;  // bytes per second, mixed
  Tuning tuning;
  Bytes written;  // to all drives
  Bytes checked;
  bool cut_short = false;  // the search would have gone on
  std::string engine;      // how it runs
};

struct TuneResult {
  struct Path {
    TunePlan::Path plan;
    TunedDrives found;
  };
  std::vector<Path> paths;
  std::optional<TunedDrives> together;  // if there are several
  double seconds = 0;

  const TunedDrives& set() const { return together ? *together : paths.front().found; }
  Tuned ForFile() const;  // of this machine
};

// Errors: those of files, engines and transfers; DataLoss if what is read is not what was written;
// Cancelled when `stop` is true.
absl::StatusOr<TuneResult> TuneDrives(const TuneOptions& options, const TunePlan& plan,
                                      const Progress& progress, const std::atomic<bool>* stop);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_TUNE_DRIVES_H_
