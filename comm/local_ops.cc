#include "comm/local_ops.h"

#include <algorithm>
#include <cstring>

#include "comm/ordered_reduce.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

// How many views a kind wants; kAll: one per rank.
enum class Views : uint8_t { kNone, kOne, kAll };
struct Shape {
  Views send;
  Views receive;
};

Shape ShapeOf(const CommOp& op, Rank self) {
  using enum Views;
  switch (op.kind) {
    case CommKind::kAllGather:
      return {kOne, kAll};
    case CommKind::kReduceScatter:
      return {kAll, kOne};
    case CommKind::kAllReduce:
      return {kOne, kOne};
    case CommKind::kBroadcast:
      return self == op.peer ? Shape{kOne, kNone} : Shape{kNone, kOne};
    case CommKind::kAllToAll:
      return {kAll, kAll};
    case CommKind::kSend:
      return {kOne, kNone};
    case CommKind::kReceive:
      return {kNone, kOne};
    case CommKind::kBarrier:
      break;
  }
  return {kNone, kNone};
}

bool IsPointToPoint(CommKind kind) { return kind == CommKind::kSend || kind == CommKind::kReceive; }
bool Adds(CommKind kind) {
  return kind == CommKind::kReduceScatter || kind == CommKind::kAllReduce;
}

Bytes SizeOfView(ConstMemoryView view) { return Bytes(static_cast<int64_t>(view.size())); }

template <typename Views>
Bytes SizeOfAll(const Views& views) {
  Bytes total;
  for (const ConstMemoryView view : views) total += SizeOfView(view);
  return total;
}

// Of what `from` sends to `to`.
ConstMemoryView SentTo(const CommOp& op, Rank to) {
  const bool each = op.kind == CommKind::kReduceScatter || op.kind == CommKind::kAllToAll;
  return each ? op.send[to.value()] : op.send.empty() ? ConstMemoryView() : op.send[0];
}

// Of what is received from `from`.
ConstMemoryView ReceivedFrom(const CommOp& op, Rank from) {
  const bool each = op.kind == CommKind::kAllGather || op.kind == CommKind::kAllToAll;
  return each                 ? op.receive[from.value()]
         : op.receive.empty() ? ConstMemoryView()
                              : ConstMemoryView(op.receive[0]);
}

void Copy(ConstMemoryView from, MemoryView to) {
  if (!from.empty() && from.data() != to.data()) std::memcpy(to.data(), from.data(), from.size());
}

std::string Both(const CommOp& a, Rank rank_a, const CommOp& b, Rank rank_b) {
  return fmt::format("rank {} calls {}, rank {} {}", rank_a.value(), OpName(a), rank_b.value(),
                     OpName(b));
}

std::string Sizes(const char* what, Rank from, size_t sent, Rank to, size_t expected) {
  return fmt::format("{}: rank {} sends {} bytes to rank {}, which expects {}", what, from.value(),
                     sent, to.value(), expected);
}

// Slice `rank` of `elements`.
struct Slice {
  size_t begin;
  size_t end;
};
Slice SliceOf(size_t elements, size_t rank, size_t ranks) {
  const auto at = [&](size_t r) { return elements / ranks * r + std::min(r, elements % ranks); };
  return {at(rank), at(rank + 1)};
}

}  // namespace

std::string WrongViews(const CommOp& op, Rank self, uint32_t ranks) {
  const Shape shape = ShapeOf(op, self);
  const auto count = [&](Views views) -> size_t {
    return views == Views::kNone ? 0 : views == Views::kOne ? 1 : ranks;
  };
  const auto wrong = [&](std::string_view what) {
    return fmt::format("{}: {}", Name(op.kind), what);
  };
  if (op.send.size() != count(shape.send) || op.receive.size() != count(shape.receive)) {
    return wrong(fmt::format("{} views to send and {} to receive, not {} and {}", op.send.size(),
                             op.receive.size(), count(shape.send), count(shape.receive)));
  }
  const bool has_peer = IsPointToPoint(op.kind) || op.kind == CommKind::kBroadcast;
  if (has_peer && op.peer.value() >= ranks) return wrong("there is no such peer");
  if (IsPointToPoint(op.kind) && op.peer == self) return wrong("the peer is the rank itself");
  if (shape.send != Views::kNone && shape.receive != Views::kNone &&
      SentTo(op, self).size() != ReceivedFrom(op, self).size())
    return wrong("what the rank sends itself is not what it receives");
  if (!Adds(op.kind)) return "";
  for (const ConstMemoryView view : op.send) {
    if (view.size() % static_cast<size_t>(SizeOf(op.type)) != 0)
      return wrong(fmt::format("{} bytes are no whole number of {}", view.size(), Name(op.type)));
  }
  return "";
}

std::string OpName(const CommOp& op) {
  const Bytes bytes = op.send.empty() ? SizeOfAll(op.receive) : SizeOfAll(op.send);
  const char* const name = Name(op.kind);
  switch (op.kind) {
    case CommKind::kReduceScatter:
    case CommKind::kAllReduce:
      return fmt::format("{} of {} bytes as {}", name, bytes.value(), Name(op.type));
    case CommKind::kBroadcast:
    case CommKind::kReceive:
      return fmt::format("{} of {} bytes from rank {}", name, bytes.value(), op.peer.value());
    case CommKind::kSend:
      return fmt::format("{} of {} bytes to rank {}", name, bytes.value(), op.peer.value());
    case CommKind::kBarrier:
      return name;
    case CommKind::kAllGather:
    case CommKind::kAllToAll:
      break;
  }
  return fmt::format("{} of {} bytes", name, bytes.value());
}

bool Needs(const CommOp& op, Rank self, Rank other) {
  return self != other && (!IsPointToPoint(op.kind) || op.peer == other);
}

std::string Disagreement(const CommOp& a, Rank rank_a, const CommOp& b, Rank rank_b) {
  const bool same =
      IsPointToPoint(a.kind) ? IsPointToPoint(b.kind) && a.kind != b.kind : a.kind == b.kind;
  if (!same || (Adds(a.kind) && a.type != b.type) ||
      (a.kind == CommKind::kBroadcast && a.peer != b.peer))
    return Both(a, rank_a, b, rank_b);
  if (a.kind == CommKind::kBroadcast && rank_a != a.peer && rank_b != a.peer)
    return a.receive[0].size() == b.receive[0].size() ? "" : Both(a, rank_a, b, rank_b);
  const size_t to_b = SentTo(a, rank_b).size();
  const size_t from_a = ReceivedFrom(b, rank_a).size();
  if (to_b != from_a) return Sizes(Name(a.kind), rank_a, to_b, rank_b, from_a);
  const size_t to_a = SentTo(b, rank_a).size();
  const size_t from_b = ReceivedFrom(a, rank_b).size();
  if (to_a != from_b) return Sizes(Name(a.kind), rank_b, to_a, rank_a, from_b);
  return "";
}

Bytes SentBytes(const CommOp& op, Rank self, uint32_t ranks) {
  if (ranks == 1) return Bytes(0);
  switch (op.kind) {
    case CommKind::kAllGather:
      return SizeOfView(op.send[0]) * (ranks - 1);
    case CommKind::kAllReduce:
      return SizeOfView(op.send[0]) * 2 * (ranks - 1) / ranks;
    case CommKind::kReduceScatter:
    case CommKind::kAllToAll:
      return SizeOfAll(op.send) - SizeOfView(op.send[self.value()]);
    case CommKind::kBroadcast:
    case CommKind::kSend:
    case CommKind::kReceive:
    case CommKind::kBarrier:
      break;
  }
  return SizeOfAll(op.send);
}

Bytes ReceivedBytes(const CommOp& op, Rank self, uint32_t ranks) {
  if (ranks == 1) return Bytes(0);
  switch (op.kind) {
    case CommKind::kReduceScatter:
      return SizeOfView(op.receive[0]) * (ranks - 1);
    case CommKind::kAllReduce:
      return SizeOfView(op.receive[0]) * 2 * (ranks - 1) / ranks;
    case CommKind::kAllGather:
    case CommKind::kAllToAll:
      return SizeOfAll(op.receive) - SizeOfView(op.receive[self.value()]);
    case CommKind::kBroadcast:
    case CommKind::kSend:
    case CommKind::kReceive:
    case CommKind::kBarrier:
      break;
  }
  return SizeOfAll(op.receive);
}

void LocalPart::Do(const CommOp& own, std::span<CommOp* const> ops, int phase) {
  switch (own.kind) {
    case CommKind::kAllGather:
    case CommKind::kAllToAll:
      for (size_t r = 0; r < ops.size(); ++r) Copy(SentTo(*ops[r], self_), own.receive[r]);
      return;
    case CommKind::kReduceScatter:
      for (size_t r = 0; r < ops.size(); ++r) addends_[r] = SentTo(*ops[r], self_).data();
      return OrderedSum(addends_, own.type, 1, own.receive[0].data(), own.type,
                        own.receive[0].size() / static_cast<size_t>(SizeOf(own.type)));
    case CommKind::kAllReduce:
      return phase == 0 ? AddSlice(own, ops) : TakeSlices(own, ops);
    case CommKind::kBroadcast:
    case CommKind::kReceive:
      if (own.peer == self_) return;
      return Copy(ops[own.peer.value()]->send[0], own.receive[0]);
    case CommKind::kSend:
    case CommKind::kBarrier:
      return;
  }
}

// Each rank adds a slice of its own, which nobody else reads or writes meanwhile: so in place is
// like elsewhere.
void LocalPart::AddSlice(const CommOp& own, std::span<CommOp* const> ops) {
  const auto size = static_cast<size_t>(SizeOf(own.type));
  const Slice mine = SliceOf(own.send[0].size() / size, self_.value(), ops.size());
  for (size_t r = 0; r < ops.size(); ++r) addends_[r] = ops[r]->send[0].data() + mine.begin * size;
  OrderedSum(addends_, own.type, 1, own.receive[0].data() + mine.begin * size, own.type,
             mine.end - mine.begin);
}

void LocalPart::TakeSlices(const CommOp& own, std::span<CommOp* const> ops) const {
  const auto size = static_cast<size_t>(SizeOf(own.type));
  for (size_t r = 0; r < ops.size(); ++r) {
    const Slice slice = SliceOf(own.send[0].size() / size, r, ops.size());
    const size_t begin = slice.begin * size;
    const size_t length = slice.end * size - begin;
    if (r == self_.value()) continue;
    Copy(ConstMemoryView(ops[r]->receive[0]).subspan(begin, length),
         own.receive[0].subspan(begin, length));
  }
}

}  // namespace sluice
