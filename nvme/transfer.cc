#include "nvme/transfer.h"

#include <cerrno>
#include <cstdint>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

constexpr int kAttemptsMax = 16;  // in a row, without progress

std::string Describe(const IoOp& op, std::span<const DirectFile> files) {
  const uint32_t f = op.file.value();
  return fmt::format("{} ({})", OpName(op),
                     f < files.size() ? files[f].description() : "which does not exist");
}

}  // namespace

std::string OpName(const IoOp& op) {
  return fmt::format("{} {} bytes at {} of swap file {}",
                     op.kind == IoKind::kRead ? "reading" : "writing", op.memory.size(),
                     op.offset.value(), op.file.value());
}

absl::Status TransferError(const IoOp& op, std::span<const DirectFile> files, int errno_value) {
  return ErrnoStatus(errno_value, Describe(op, files));
}

bool GoesOn(IoOp* op, int64_t result, std::span<const DirectFile> files, int* retries) {
  if (result < 0) {
    const int error = static_cast<int>(-result);
    if ((error == EINTR || error == EAGAIN) && ++*retries < kAttemptsMax) return true;
    op->status = TransferError(*op, files, error);
    return false;
  }
  const int64_t before = op->transferred.value();
  const int64_t after = before + result;
  if (static_cast<size_t>(after) == op->memory.size()) {
    op->transferred = Bytes(after);
    op->status = absl::OkStatus();
    return false;
  }
  const int64_t alignment = files[op->file.value()].alignment().value();
  op->transferred = Bytes(after / alignment * alignment);
  if (op->transferred > Bytes(before)) {
    *retries = 0;
    return true;
  }
  if (result > 0 && ++*retries < kAttemptsMax) return true;
  op->status = absl::DataLossError(
      fmt::format("{}: the file ends or nothing more is moved after {} bytes; was it truncated?",
                  Describe(*op, files), after));
  return false;
}

Rest RestOf(const IoOp& op) {
  return {.memory = op.memory.subspan(op.transferred.size()),
          .offset = FileOffset(op.offset.value() + op.transferred.value())};
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
