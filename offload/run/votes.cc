#include "offload/run/votes.h"

#include <algorithm>
#include <utility>

#include "core/status.h"

namespace sluice {

void Votes::Cast(bool succeeded, bool first, Counted counted) {
  SLUICE_CHECK(idle());
  first_ = first;
  counted_ = std::move(counted);
  agreement_->Say({Topic::kVote, succeeded ? 1U : 0U});
}

void Votes::OnSaid(Rank rank, Said said) {
  said_[rank.value()].push_back(said.index != 0);
  Count();
}

void Votes::Count() {
  const auto empty = [](const std::deque<bool>& said) { return said.empty(); };
  if (counted_ == nullptr || std::ranges::any_of(said_, empty)) return;
  std::vector<uint32_t> failed;
  for (uint32_t r = 0; r < said_.size(); ++r) {
    if (!said_[r].front()) failed.push_back(r);
    said_[r].pop_front();
  }
  std::exchange(counted_, nullptr)(failed);
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
