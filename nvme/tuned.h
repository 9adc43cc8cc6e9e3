// nvme/tuned.h
//
// What `sluice tune` has found, as the file that it writes and a run loads: of each directory, and
// of all of them together, how bytes move fastest and how fast that is; and of which machine and
// drives that holds.
//
// Keys of a file of tuned settings:
//   sluice_tuned                 version of these keys: 1
//   machine.host                 its name
//   machine.cpu                  model
//   machine.kernel               release of the operating system's
//   paths                        each directory that was tuned; the next list
//   set                          of all directories together: settings; the last list
//
// Keys of each of the paths:
//   path                         absolute
//   file_system                  its type
//   device                       the drive's name then; null: none that the kernel knows
//   model                        null: not known, as the next two
//   serial
//   size_bytes                   of the drive
//   settings                     the next list
//
// Keys of settings:
//   request_bytes                of a transfer: a multiple of 4096
//   depth                        transfers in flight
//   batch                        of these submitted per call, at most
//   engine                       io_uring, libaio or threads
//   read_bytes_per_second        with these, as the next two
//   write_bytes_per_second
//   mixed_bytes_per_second       reads and writes together, as many of each
//
// Threads: any.

#ifndef SLUICE_NVME_TUNED_H_
#define SLUICE_NVME_TUNED_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/types.h"
#include "nvme/drives.h"
#include "nvme/io_engine.h"

namespace sluice {

inline constexpr std::string_view kTunedFile = "sluice-tuned.json";  // unless told otherwise

struct TunedSettings {
  Bytes request;
  uint32_t depth = 1;
  uint32_t batch = 1;
  IoEngineKind engine = IoEngineKind::kThreads;  // never kAuto
  double read_rate = 1;                          // bytes per second
  double write_rate = 1;
  double mixed_rate = 1;

  friend bool operator==(const TunedSettings&, const TunedSettings&) = default;
};

// What tells a drive, and its file system, from another one. Empty or 0: not known.
struct DriveIdentity {
  std::string path;  // absolute
  std::string file_system;
  std::string device;  // a name that another drive may have after the next start
  std::string model;
  std::string serial;
  Bytes size;

  friend bool operator==(const DriveIdentity&, const DriveIdentity&) = default;
};

struct MachineIdentity {
  std::string host;
  std::string cpu;
  std::string kernel;

  friend bool operator==(const MachineIdentity&, const MachineIdentity&) = default;
};

struct Tuned {
  struct Path {
    DriveIdentity drive;
    TunedSettings settings;
    friend bool operator==(const Path&, const Path&) = default;
  };
  MachineIdentity machine;
  std::vector<Path> paths;  // at least one, no directory twice
  TunedSettings set;

  friend bool operator==(const Tuned&, const Tuned&) = default;
};

// "io_uring", "libaio" or "threads"; "auto" of kAuto.
const char* Name(IoEngineKind engine);

// The file's text.
std::string TunedText(const Tuned& tuned);

// What `text` holds: every key, no other and none twice, numbers within what a run takes. `source`:
// for messages. Errors: InvalidArgument naming source and key.
absl::StatusOr<Tuned> ParseTuned(const std::string& text, const std::string& source);

// Of a file. Errors: likewise, and those of reading it, naming it.
absl::StatusOr<Tuned> ReadTuned(const std::string& path);

}  // namespace sluice

#endif  // SLUICE_NVME_TUNED_H_
