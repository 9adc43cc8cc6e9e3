#include "comm/attendance.h"

#include <algorithm>

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
  return IsPointToPoint(op->kind) ? ComeToPeer(rank) : ComeToAll(rank);
}

absl::StatusOr<bool> Attendance::ComeToPeer(Rank rank) {
  const Rank peer = op(rank)->peer;
  if (gone_[peer.value()] != 0) return HasLeft(peer, rank);
  if (!HasCome(peer, rank)) {
    ++in_pairs_;
    return false;
  }
  SLUICE_RETURN_IF_ERROR(Agree(rank, peer));
  --in_pairs_;
  return Begin(PartyOf(rank));
}

absl::StatusOr<bool> Attendance::ComeToAll(Rank rank) {
  for (uint32_t r = 0; gone_count_ > 0 && r < ranks(); ++r) {
    if (gone_[r] != 0) return HasLeft(Rank(r), rank);
  }
  for (uint32_t r = 0; in_pairs_ > 0 && r < ranks(); ++r) {
    if (HasCome(Rank(r), rank) && IsPointToPoint(ops_[r]->kind)) return Agree(rank, Rank(r));
  }
  if (in_all_ == 0) first_in_all_ = rank;
  SLUICE_RETURN_IF_ERROR(Agree(rank, first_in_all_));
  if (++in_all_ < ranks()) return false;
  in_all_ = 0;
  return Begin(PartyOf(rank));
}

absl::Status Attendance::Agree(Rank a, Rank b) const {
  if (a == b) return absl::OkStatus();
  const std::string difference = DifferentCalls(*op(a), a, *op(b), b);
  return difference.empty() ? absl::OkStatus() : absl::FailedPreconditionError(difference);
}

absl::StatusOr<bool> Attendance::Begin(const Party& party) {
  uint64_t difference = 0;
  party.ForEach([&](Rank rank) {
    difference += op(rank)->sizes().sent_sum - op(rank)->sizes().received_sum;
    running_[rank.value()] = 1;
  });
  if (difference == 0) return true;
  for (uint32_t b = party.first; b <= party.last; b += party.step) {
    for (uint32_t a = party.first; a < b; a += party.step) {
      const std::string what = DifferentSizes(*ops_[a], Rank(a), *ops_[b], Rank(b));
      if (what.empty()) continue;
      party.ForEach([this](Rank rank) { running_[rank.value()] = 0; });
      return absl::FailedPreconditionError(what);
    }
  }
  SLUICE_CHECK_MSG(false, "equal sizes have equal sums");
  return true;
}

absl::Status Attendance::Leave(Rank rank) {
  gone_[rank.value()] = 1;
  ++gone_count_;
  for (uint32_t r = 0; r < ranks(); ++r) {
    if (HasCome(Rank(r), rank)) return HasLeft(rank, Rank(r));
  }
  return absl::OkStatus();
}

Party Attendance::PartyOf(Rank rank) const {
  const CommOp& own = *op(rank);
  if (!IsPointToPoint(own.kind)) return {0, ranks() - 1, 1};
  const uint32_t first = std::min(rank.value(), own.peer.value());
  const uint32_t last = std::max(rank.value(), own.peer.value());
  return {first, last, last - first};
}

std::string Attendance::WaitsFor(Rank rank) const {
  std::string names;
  size_t missing = 0;
  PartyOf(rank).ForEach([&](Rank other) {
    if (other == rank || HasCome(other, rank)) return;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", other.value());
    ++missing;
  });
  return fmt::format("rank {} waits in {} for rank{} {}", rank.value(), OpName(*op(rank)),
                     missing == 1 ? "" : "s", names);
}

}  // namespace sluice
