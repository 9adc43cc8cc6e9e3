#include "offload/run/read_order.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <set>

namespace sluice {
namespace {

// Against the definition, by looking through all chunks: the first that was not passed of a drive
// that has not its share.
RC_GTEST_PROP(ReadOrderTest, AgreesWithItsDefinition, ()) {
  const std::vector<uint32_t> shares =
      *rc::gen::nonEmpty(rc::gen::container<std::vector<uint32_t>>(rc::gen::inRange(1u, 5u)));
  const auto drives = static_cast<uint32_t>(shares.size());
  ReadOrder order(shares);
  struct Chunk {
    ChunkIndex chunk;
    DriveIndex drive;
    bool passed = false;
  };
  std::vector<Chunk> chunks;
  std::vector<uint32_t> on_their_way(drives, 0);
  for (int i = 0; i < 200; ++i) {
    const int action = *rc::gen::inRange(0, 40);
    if (action == 0) {
      order.Restart();
      for (Chunk& chunk : chunks) chunk.passed = false;
    } else if (action == 1) {
      order.Clear();
      chunks.clear();
    } else if (action < 8) {
      const Chunk chunk{.chunk = ChunkIndex(*rc::gen::arbitrary<uint32_t>()),
                        .drive = DriveIndex(*rc::gen::inRange(0u, drives))};
      order.Add(chunk.chunk, chunk.drive);
      chunks.push_back(chunk);
    } else if (action < 20) {
      const uint32_t d = *rc::gen::inRange(0u, drives);
      if (on_their_way[d] == 0) continue;
      --on_their_way[d];
      order.Ended(DriveIndex(d));
    } else {
      const auto first = std::ranges::find_if(chunks, [&](const Chunk& chunk) {
        return !chunk.passed && on_their_way[chunk.drive.value()] < shares[chunk.drive.value()];
      });
      const std::optional<ReadOrder::Turn> turn = order.Next();
      RC_ASSERT(turn.has_value() == (first != chunks.end()));
      if (!turn) continue;
      RC_ASSERT(turn->chunk == first->chunk && turn->drive == first->drive);
      order.Pass(*turn);
      first->passed = true;
      if (action < 25) continue;  // not needed
      order.Begun(turn->drive);
      ++on_their_way[turn->drive.value()];
    }
  }
}

}  // namespace
}  // namespace sluice
