#include "offload/run/read_order.h"

namespace sluice {

ReadOrder::ReadOrder(const std::vector<uint32_t>& shares) : lanes_(shares.size()) {
  for (size_t d = 0; d < shares.size(); ++d) lanes_[d].share = shares[d];
}

void ReadOrder::Clear() {
  for (Lane& lane : lanes_) lane.chunks.clear();
  count_ = 0;
  Restart();
}

void ReadOrder::Add(ChunkIndex chunk, DriveIndex drive) {
  lanes_[drive.value()].chunks.push_back({.position = count_++, .chunk = chunk});
}

void ReadOrder::Restart() {
  for (Lane& lane : lanes_) lane.next = 0;
}

std::optional<ReadOrder::Turn> ReadOrder::Next() const {
  std::optional<Turn> turn;
  size_t first = count_;
  for (uint32_t d = 0; d < lanes_.size(); ++d) {
    const Lane& lane = lanes_[d];
    if (lane.on_their_way == lane.share || lane.next == lane.chunks.size()) continue;
    const Place& place = lane.chunks[lane.next];
    if (place.position >= first) continue;
    first = place.position;
    turn = {.chunk = place.chunk, .drive = DriveIndex(d)};
  }
  return turn;
}

void ReadOrder::Pass(const Turn& turn) { ++lanes_[turn.drive.value()].next; }

}  // namespace sluice
