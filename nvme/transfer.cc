#include "nvme/transfer.h"

#include <cerrno>
#include <cstdint>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

constexpr int kRetriesMax = 16;

std::string Describe(const IoOp& op, std::span<const DirectFile> files) {
  const uint32_t f = op.file.value();
  return fmt::format("{} {} bytes at {} of swap file {} ({})",
                     op.kind == IoKind::kRead ? "reading" : "writing", op.memory.size(),
                     op.offset.value(), f,
                     f < files.size() ? files[f].description() : "which does not exist");
}

}  // namespace

absl::Status TransferError(const IoOp& op, std::span<const DirectFile> files, int errno_value) {
  return ErrnoStatus(errno_value, Describe(op, files));
}

bool GoesOn(IoOp* op, int64_t result, std::span<const DirectFile> files, int* retries) {
  if (result < 0) {
    const int error = static_cast<int>(-result);
    if ((error == EINTR || error == EAGAIN) && ++*retries < kRetriesMax) return true;
    op->status = TransferError(*op, files, error);
    return false;
  }
  op->transferred += Bytes(result);
  if (op->transferred.size() == op->memory.size()) {
    op->status = absl::OkStatus();
    return false;
  }
  if (result == 0) {
    op->status =
        absl::DataLossError(fmt::format("{}: the file ends after {} bytes of it; was it truncated?",
                                        Describe(*op, files), op->transferred.value()));
    return false;
  }
  // The rest goes on from an aligned place: what was moved of a partial sector is moved again.
  const int64_t alignment = files[op->file.value()].alignment().value();
  op->transferred = Bytes(op->transferred.value() / alignment * alignment);
  if (result < alignment && ++*retries >= kRetriesMax) {
    op->status = absl::DataLossError(fmt::format("{}: no progress after {} bytes",
                                                 Describe(*op, files), op->transferred.value()));
    return false;
  }
  return true;
}

absl::Status CheckOp(const IoOp& op, std::span<const DirectFile> files) {
  if (op.file.value() >= files.size()) return TransferError(op, files, EBADF);
  const int64_t alignment = files[op.file.value()].alignment().value();
  const auto address = reinterpret_cast<uintptr_t>(op.memory.data());
  const bool aligned = address % static_cast<uint64_t>(alignment) == 0 &&
                       op.offset.value() % alignment == 0 &&
                       static_cast<int64_t>(op.memory.size()) % alignment == 0;
  if (aligned && !op.memory.empty() && op.offset.value() >= 0) return absl::OkStatus();
  return TransferError(op, files, EINVAL);
}

}  // namespace sluice
