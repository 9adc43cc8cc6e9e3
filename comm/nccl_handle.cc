#include "comm/nccl_handle.h"

#include <algorithm>
#include <thread>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {
// How often a call that has not ended is asked for: at first, and at most.
constexpr Nanos kPollMin = std::chrono::microseconds(5);
constexpr Nanos kPollMax = std::chrono::milliseconds(1);
}  // namespace

absl::Status NcclHandle::Init(const NcclUniqueId& id, Rank rank, uint32_t ranks,
                              const NcclPatience& patience) {
  SLUICE_CHECK(comm_ == nullptr);
  NcclConfig config;
  config.blocking = 0;
  constexpr const char* kWhat = "ncclCommInitRankConfig";
  const NcclResult result = api().CommInitRankConfig(&comm_, static_cast<int>(ranks), id,
                                                     static_cast<int>(rank.value()), &config);
  absl::Status status = comm_ == nullptr && result == kNcclInProgress
                            ? absl::InternalError(fmt::format("{}: it makes nothing", kWhat))
                            : Settle(result, kWhat, patience);
  if (!status.ok()) Abort();
  return status;
}

absl::Status NcclHandle::Settle(NcclResult result, const char* what, const NcclPatience& patience) {
  for (Nanos poll = kPollMin; result == kNcclInProgress; poll = std::min(poll * 2, kPollMax)) {
    const NcclResult asked = api().CommGetAsyncError(comm_, &result);
    if (asked != kNcclSuccess) return library_->ToStatus(asked, "ncclCommGetAsyncError", comm_);
    if (result != kNcclInProgress) break;
    SLUICE_RETURN_IF_ERROR(patience.control->status());
    if (patience.broken->load())
      return absl::AbortedError(fmt::format("{}: given up, for the group is broken", what));
    if (patience.clock->Now() >= patience.deadline)
      return absl::DeadlineExceededError(fmt::format("{}: it does not end", what));
    std::this_thread::sleep_for(poll);
  }
  return library_->ToStatus(result, what, comm_);
}

absl::Status NcclHandle::AsyncError() {
  NcclResult result = kNcclSuccess;
  const NcclResult asked = api().CommGetAsyncError(comm_, &result);
  if (asked != kNcclSuccess) return library_->ToStatus(asked, "ncclCommGetAsyncError", comm_);
  if (result == kNcclInProgress) return absl::OkStatus();
  return library_->ToStatus(result, "on the stream", comm_);
}

absl::Status NcclHandle::Finish(const NcclPatience& patience) {
  if (comm_ == nullptr) return absl::OkStatus();
  absl::Status status = Settle(api().CommFinalize(comm_), "ncclCommFinalize", patience);
  if (!status.ok()) {
    Abort();
    return status;
  }
  return library_->ToStatus(api().CommDestroy(std::exchange(comm_, nullptr)), "ncclCommDestroy",
                            nullptr);
}

// What it says is of no use: nobody may call anything of the communicator's afterwards.
void NcclHandle::Abort() {
  if (comm_ != nullptr) (void)api().CommAbort(std::exchange(comm_, nullptr));
}

}  // namespace sluice
