// tests/nvme/fake_drive.h
//
// File systems and drives of other kinds than this machine has: ld's --wrap puts this between
// DirectFile and the engine of threads and the calls they make. What it isn't told to change goes
// through to the real directory.
//
// Threads: set while nothing is in flight.

#ifndef SLUICE_TESTS_NVME_FAKE_DRIVE_H_
#define SLUICE_TESTS_NVME_FAKE_DRIVE_H_

#include <cstdint>
#include <optional>

namespace sluice {

struct FakeDrive {
  // Direct I/O needs multiples of it, else it fails with EINVAL.
  int64_t alignment = 1;
  // What statx says that it needs: 0 is no answer.
  std::optional<uint32_t> said_alignment;
  std::optional<uint32_t> magic;  // of the file system
  // What becomes of asking for no copy on write.
  enum class NoCow { kUnknownCall, kRefused, kIgnored, kTaken };
  std::optional<NoCow> no_cow;
  int flags = 0;       // of the file asked last
  int flags_set = 0;   // how often they were set
  bool empty = false;  // the file had no space when they were

  static FakeDrive& Get();  // as the calls see it
  static void Reset() { Get() = {}; }
};

}  // namespace sluice

#endif  // SLUICE_TESTS_NVME_FAKE_DRIVE_H_
