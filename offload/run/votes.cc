#include "offload/run/votes.h"

#include <algorithm>
#include <utility>

#include "core/status.h"

namespace sluice {

void Votes::Cast(bool succeeded, uint64_t what, Counted counted) {
  SLUICE_CHECK(idle());
  counted_ = std::move(counted);
  agreement_->Say({Topic::kVote, static_cast<uint32_t>(what << 1 | (succeeded ? 1 : 0))});
}

void Votes::OnSaid(Rank rank, Said said) {
  ++progress_;
  if (said.topic == Topic::kGoesOn) return;
  said_[rank.value()].push_back(said.index);
  Count();
}

void Votes::Count() {
  const auto empty = [](const std::deque<uint32_t>& said) { return said.empty(); };
  if (counted_ == nullptr || std::ranges::any_of(said_, empty)) return;
  Verdict verdict;
  const uint32_t own = said_[own_.value()].front() >> 1;
  for (uint32_t r = 0; r < said_.size(); ++r) {
    const uint32_t said = said_[r].front();
    said_[r].pop_front();
    if ((said & 1) == 0) verdict.failed.push_back(r);
    if (said >> 1 != own) verdict.elsewhere.push_back(r);
  }
  std::exchange(counted_, nullptr)(verdict);
}

RankWait Votes::Awaited() const {
  RankWait wait{.what = "saves or loads a checkpoint"};
  if (!awaits()) return wait;
  for (uint32_t r = 0; r < said_.size(); ++r) {
    if (said_[r].empty()) wait.missing.push_back(r);
  }
  return wait;
}

}  // namespace sluice
