#include "offload/plan/trace.h"

#include <algorithm>
#include <utility>

#include "core/status.h"

namespace sluice {

std::vector<UnitIndex> Acquisitions(const Trace& trace) {
  std::vector<UnitIndex> units;
  for (const TraceStep& step : trace) {
    if (step.acquire) units.push_back(step.unit);
  }
  return units;
}

void TraceBook::Follow(const Known* known) {
  known_followed_ = known;
  followed_ = known == nullptr ? nullptr : &known->steps;
}

void TraceBook::Begin(uint32_t key) {
  SLUICE_CHECK(key < kKeys);
  End();
  if (any_) successor_[key_] = key;
  if (!seen_[key]) successor_[key] = key, seen_[key] = true;
  any_ = true;
  open_ = true;
  key_ = key;
  position_ = 0;
  recorded_.clear();
  recorded_acquisitions_.clear();
  Follow(known_[key].empty() ? nullptr : known_[key].front().get());
}

void TraceBook::End() {
  if (!open_) return;
  open_ = false;
  Follow(nullptr);
  if (recorded_acquisitions_.empty()) return;
  auto& known = known_[key_];
  const auto same = std::find_if(known.begin(), known.end(), [&](const auto& k) {
    return k->acquisitions == recorded_acquisitions_;
  });
  if (same != known.end()) {
    (*same)->steps = recorded_;
    std::rotate(known.begin(), same, same + 1);
    return;
  }
  if (known.size() == kTracesPerKey) known.pop_back();
  known.insert(known.begin(), std::make_unique<Known>(Known{recorded_, recorded_acquisitions_}));
}

bool TraceBook::OnAcquire(UnitIndex unit) {
  if (!open_) return false;
  recorded_.push_back({unit, true});
  recorded_acquisitions_.push_back(unit);
  if (known_followed_ == nullptr) return false;
  const std::vector<UnitIndex>& expected = known_followed_->acquisitions;
  if (position_ < expected.size() && expected[position_] == unit) {
    ++position_;
    return true;
  }
  ++departures_;
  for (const auto& other : known_[key_]) {
    const std::vector<UnitIndex>& units = other->acquisitions;
    if (other.get() != known_followed_ && units.size() >= recorded_acquisitions_.size() &&
        std::equal(recorded_acquisitions_.begin(), recorded_acquisitions_.end(), units.begin())) {
      Follow(other.get());
      position_ = recorded_acquisitions_.size();
      return false;
    }
  }
  const auto ahead =
      std::find(expected.begin() + static_cast<ptrdiff_t>(position_), expected.end(), unit);
  if (ahead != expected.end()) position_ = static_cast<size_t>(ahead - expected.begin()) + 1;
  return false;
}

void TraceBook::OnRelease(UnitIndex unit) {
  if (open_) recorded_.push_back({unit, false});
}

const Trace* TraceBook::Latest(uint32_t key) const {
  SLUICE_CHECK(key < kKeys);
  return known_[key].empty() ? nullptr : &known_[key].front()->steps;
}

}  // namespace sluice
