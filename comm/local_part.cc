#include "comm/local_part.h"

#include <algorithm>
#include <cstring>

#include "comm/op_rules.h"
#include "comm/ordered_reduce.h"

namespace sluice {

namespace {

template <typename View>
void Copy(ViewCursor<View> from, ViewCursor<MemoryView> to, size_t bytes = SIZE_MAX) {
  while (true) {
    const size_t n = std::min({from.here().size(), to.here().size(), bytes});
    if (n == 0) return;
    if (from.here().data() != to.here().data())
      std::memcpy(to.here().data(), from.here().data(), n);
    from.Advance(n);
    to.Advance(n);
    bytes -= n;
  }
}

// Slice `rank` of what is reduced, in bytes: whole values.
struct Slice {
  size_t begin;
  size_t size;
};
Slice SliceOf(const CommOp& op, size_t rank, size_t ranks) {
  const auto size = static_cast<size_t>(SizeOf(op.type));
  const size_t values = SizeOfAll(op.receive.views) / size;
  const auto at = [&](size_t r) { return values / ranks * r + std::min(r, values % ranks); };
  return {at(rank) * size, (at(rank + 1) - at(rank)) * size};
}

}  // namespace

void LocalPart::Do(Rank self, std::span<CommOp* const> ops, int phase) {
  const CommOp& own = *ops[self.value()];
  const auto copy_from = [&](size_t rank) {
    Copy(ViewCursor(ops[rank]->send[self.value()]), ViewCursor(own.receive[rank]));
  };
  switch (own.kind) {
    case CommKind::kAllGather:
    case CommKind::kAllToAll:
      for (size_t r = 0; r < ops.size(); ++r) copy_from(r);
      return;
    case CommKind::kReduceScatter:
      return Add(self, ops, 0, SIZE_MAX);
    case CommKind::kAllReduce: {
      // Each rank adds a slice of its own, which nobody else reads or writes meanwhile: so in place
      // is like elsewhere.
      if (phase > 0) return TakeSlices(self, ops);
      const Slice mine = SliceOf(own, self.value(), ops.size());
      return Add(self, ops, mine.begin, mine.size);
    }
    case CommKind::kBroadcast:
    case CommKind::kReceive:
      if (own.peer != self) copy_from(own.peer.value());
      return;
    case CommKind::kSend:
    case CommKind::kBarrier:
      return;
  }
}

void LocalPart::Add(Rank self, std::span<CommOp* const> ops, size_t skip, size_t bytes) {
  const CommOp& own = *ops[self.value()];
  ViewCursor to(own.receive.views, skip);
  for (size_t r = 0; r < ops.size(); ++r) from_[r] = ViewCursor(ops[r]->send[self.value()], skip);
  while (true) {
    size_t n = std::min(bytes, to.here().size());
    for (const auto& cursor : from_) n = std::min(n, cursor.here().size());
    if (n == 0) return;
    for (size_t r = 0; r < ops.size(); ++r) addends_[r] = from_[r].here().data();
    OrderedSum(addends_, own.type, 1, to.here().data(), own.type,
               n / static_cast<size_t>(SizeOf(own.type)));
    for (auto& cursor : from_) cursor.Advance(n);
    to.Advance(n);
    bytes -= n;
  }
}

void LocalPart::TakeSlices(Rank self, std::span<CommOp* const> ops) {
  const CommOp& own = *ops[self.value()];
  for (size_t r = 0; r < ops.size(); ++r) {
    if (r == self.value()) continue;
    const Slice slice = SliceOf(own, r, ops.size());
    Copy(ViewCursor(ops[r]->receive.views, slice.begin), ViewCursor(own.receive.views, slice.begin),
         slice.size);
  }
}

}  // namespace sluice
