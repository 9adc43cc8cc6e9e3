#include "nvme/extents.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <deque>
#include <map>
#include <set>

namespace sluice {
namespace {

// Against lists of what is free, by drive and length, kept the simplest way.
RC_GTEST_PROP(ExtentAllocatorTest, AgreesWithAModel, ()) {
  std::vector<BlockShape> blocks(*rc::gen::inRange<size_t>(0, 40));
  for (BlockShape& block : blocks) block.size = KiB(4 * *rc::gen::inRange(1, 5));
  const std::vector<Drive> drives(*rc::gen::inRange<size_t>(1, 4));
  const SegmentTable table = PlanSegments(blocks, drives,
                                          {.segment_bytes = KiB(64),
                                           .generations_kept = *rc::gen::inRange(0u, 2u),
                                           .spares = *rc::gen::inRange(0u, 4u)});
  ExtentAllocator extents(&table);

  using Place = std::pair<DriveIndex, Bytes>;
  std::map<Place, std::deque<ExtentIndex>> free;
  std::map<Place, size_t> all;
  std::map<ExtentIndex, int> users;
  for (uint32_t e = 0; e < table.extents.size(); ++e) {
    const ExtentIndex index(e);
    const Place place{extents.drive(index), extents.extent(index).length};
    ++all[place];
    if (e < blocks.size()) {
      users[index] = 1;
    } else {
      free[place].push_back(index);
    }
  }
  for (int i = 0; i < 300 && !all.empty(); ++i) {
    const auto some = [](auto* map) {
      return std::next(map->begin(), *rc::gen::inRange<std::ptrdiff_t>(
                                         0, static_cast<std::ptrdiff_t>(map->size())));
    };
    const int action = *rc::gen::inRange(0, 3);
    if (action == 0) {
      const Place place = some(&all)->first;
      const std::optional<ExtentIndex> taken = extents.Take(place.first, place.second);
      std::deque<ExtentIndex>& list = free[place];
      RC_ASSERT(taken.has_value() == !list.empty());
      if (taken) {
        RC_ASSERT(*taken == list.front());
        list.pop_front();
        users[*taken] = 1;
      }
    } else if (!users.empty()) {
      const auto at = some(&users);
      const ExtentIndex index = at->first;
      if (action == 1) {
        extents.AddUser(index);
        ++at->second;
      } else {
        extents.RemoveUser(index);
        if (--at->second == 0) {
          users.erase(at);
          free[{extents.drive(index), extents.extent(index).length}].push_back(index);
        }
      }
    }
    for (const auto& [index, count] : users) RC_ASSERT(extents.shared(index) == (count > 1));
    size_t free_all = 0;
    for (const auto& [place, count] : all) {
      const ExtentAllocator::Count counted = extents.CountOf(place.first, place.second);
      RC_ASSERT(counted.all == count);
      RC_ASSERT(counted.free == free[place].size());
      free_all += counted.free;
    }
    RC_ASSERT(free_all + users.size() == table.extents.size());
  }
}

}  // namespace
}  // namespace sluice
