// nvme/transfer.h
//
// What every engine does with the result of one system call's worth of a transfer. Internal to
// engines.

#ifndef SLUICE_NVME_TRANSFER_H_
#define SLUICE_NVME_TRANSFER_H_

#include <cstdint>
#include <span>
#include <string>

#include "nvme/io_engine.h"

namespace sluice {

// "reading 4096 bytes at 8192 of swap file 2".
std::string OpName(const IoOp& op);

// "reading 4096 bytes at 8192 of swap file 2 (/mnt/a: ext4 ...): No space left on device (ENOSPC)".
absl::Status TransferError(const IoOp& op, std::span<const DirectFile> files, int errno_value);

// Takes in `result`, as the kernel returns it (bytes, or -errno), for an op of which
// op->transferred bytes were done. Returns whether to go on with the rest; otherwise op->status is
// final, and that happens after a bounded number of attempts without progress, which `retries` (0
// at first) counts. The rest starts at a multiple of the file's alignment: what was moved of a
// partial sector is moved again.
bool GoesOn(IoOp* op, int64_t result, std::span<const DirectFile> files, int* retries);

// What is left of a transfer.
struct Rest {
  MemoryView memory;
  FileOffset offset;
};
Rest RestOf(const IoOp& op);

// Ops that are not legal for their file get their error here, before the kernel sees them; ok
// otherwise.
absl::Status CheckOp(const IoOp& op, std::span<const DirectFile> files);

}  // namespace sluice

#endif  // SLUICE_NVME_TRANSFER_H_
