#include "comm/attendance.h"

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

absl::Status HasLeft(Rank other, Rank self) {
  return absl::UnavailableError(fmt::format("rank {} has left the group, and rank {} waits for it",
                                            other.value(), self.value()));
}

}  // namespace

absl::StatusOr<bool> Attendance::Come(Rank rank, CommOp* op) {
  SLUICE_CHECK(ops_[rank.value()] == nullptr);
  ops_[rank.value()] = op;
  bool all = true;
  for (uint32_t r = 0; r < ranks(); ++r) {
    const Rank other(r);
    if (!Needs(*op, rank, other)) continue;
    if (gone_[r] != 0) return HasLeft(other, rank);
    if (!HasCome(other, rank)) {
      all = false;
      continue;
    }
    const bool first = rank < other;
    const std::string disagreement =
        first ? Disagreement(*op, rank, *ops_[r], other) : Disagreement(*ops_[r], other, *op, rank);
    if (!disagreement.empty()) return absl::FailedPreconditionError(disagreement);
  }
  if (all) ForParticipants(rank, [this](Rank participant) { running_[participant.value()] = 1; });
  return all;
}

absl::Status Attendance::Leave(Rank rank) {
  gone_[rank.value()] = 1;
  for (uint32_t r = 0; r < ranks(); ++r) {
    if (HasCome(Rank(r), rank)) return HasLeft(rank, Rank(r));
  }
  return absl::OkStatus();
}

std::string Attendance::WaitsFor(Rank rank) const {
  std::string names;
  size_t missing = 0;
  ForParticipants(rank, [&](Rank other) {
    if (other == rank || HasCome(other, rank)) return;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", other.value());
    ++missing;
  });
  return fmt::format("rank {} waits in {} for rank{} {}", rank.value(), OpName(*op(rank)),
                     missing == 1 ? "" : "s", names);
}

}  // namespace sluice
