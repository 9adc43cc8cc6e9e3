#include "comm/op_rules.h"

#include <algorithm>
#include <cstdint>

#include "fmt/format.h"

namespace sluice {

namespace {

// How many of what is sent or received a kind wants.
enum class Wanted : uint8_t { kNone, kOne, kOnePerRank };
struct Shape {
  Wanted send;
  Wanted receive;
};

Shape ShapeOf(const CommOp& op, Rank self) {
  using enum Wanted;
  switch (op.kind) {
    case CommKind::kAllGather:
      return {kOne, kOnePerRank};
    case CommKind::kReduceScatter:
      return {kOnePerRank, kOne};
    case CommKind::kAllReduce:
      return {kOne, kOne};
    case CommKind::kBroadcast:
      return self == op.peer ? Shape{kOne, kNone} : Shape{kNone, kOne};
    case CommKind::kAllToAll:
      return {kOnePerRank, kOnePerRank};
    case CommKind::kSend:
      return {kOne, kNone};
    case CommKind::kReceive:
      return {kNone, kOne};
    case CommKind::kBarrier:
      break;
  }
  return {kNone, kNone};
}

bool Adds(CommKind kind) {
  return kind == CommKind::kReduceScatter || kind == CommKind::kAllReduce;
}

// Empty, or what is wrong.
template <typename View>
std::string WrongSegments(const Segments<View>& segments, Wanted wanted, uint32_t ranks) {
  if (wanted == Wanted::kNone && !segments.views.empty())
    return fmt::format("{} views, not none", segments.views.size());
  const size_t ends = wanted == Wanted::kOnePerRank ? ranks : 0;
  if (segments.ends.size() != ends)
    return fmt::format("ends for {} ranks, not {}", segments.ends.size(), ends);
  if (ends > 0 &&
      (segments.ends.back() != segments.views.size() || !std::ranges::is_sorted(segments.ends)))
    return fmt::format("ends that don't lead to the last of {} views", segments.views.size());
  return "";
}

template <typename View>
std::string CutValues(const Segments<View>& segments, FloatType type) {
  for (const View& view : segments.views) {
    if (view.size() % static_cast<size_t>(SizeOf(type)) != 0)
      return fmt::format("{} bytes are no whole number of {}", view.size(), Name(type));
  }
  return "";
}

// Odd, and otherwise any.
constexpr uint64_t kFrom = 0xD1342543DE82EF95u;
constexpr uint64_t kTo = 0x2545F4914F6CDD1Du;

constexpr uint64_t Power(uint64_t base, uint32_t exponent) {
  uint64_t power = 1;
  for (; exponent > 0; exponent /= 2, base *= base) {
    if (exponent % 2 == 1) power *= base;
  }
  return power;
}

// The sum of base^i for i below `count`.
constexpr uint64_t PowerSum(uint64_t base, uint32_t count) {
  uint64_t sum = 0;
  for (uint32_t i = 0; i < count; ++i) sum = sum * base + 1;
  return sum;
}

// All of it, and each rank's size times base^rank.
struct Weighed {
  size_t total = 0;
  uint64_t sum = 0;
};
template <typename View>
Weighed Weigh(const Segments<View>& segments, uint64_t base) {
  Weighed weighed;
  size_t last = segments.views.size();
  for (size_t rank = segments.ends.size(); rank-- > 0;) {
    const size_t begin = rank == 0 ? 0 : segments.ends[rank - 1];
    size_t size = 0;
    while (last > begin) size += segments.views[--last].size();
    weighed.total += size;
    weighed.sum = weighed.sum * base + size;
  }
  return weighed;
}

Bytes ToBytes(size_t size) { return Bytes(static_cast<int64_t>(size)); }

std::string Sizes(const CommOp& op, Rank from, size_t sent, Rank to, size_t expected) {
  return fmt::format("{} with tag {}: rank {} sends {} bytes to rank {}, which expects {}",
                     Name(op.kind), op.tag, from.value(), sent, to.value(), expected);
}

}  // namespace

std::string WrongViews(const CommOp& op, Rank self, uint32_t ranks) {
  const auto wrong = [&](std::string_view what) {
    return fmt::format("{}: {}", Name(op.kind), what);
  };
  const bool has_peer = IsPointToPoint(op.kind) || op.kind == CommKind::kBroadcast;
  if (has_peer && op.peer.value() >= ranks) return wrong("there is no such peer");
  if (IsPointToPoint(op.kind) && op.peer == self) return wrong("the peer is the rank itself");
  const Shape shape = ShapeOf(op, self);
  if (const std::string what = WrongSegments(op.send, shape.send, ranks); !what.empty())
    return wrong("to send it has " + what);
  if (const std::string what = WrongSegments(op.receive, shape.receive, ranks); !what.empty())
    return wrong("to receive it has " + what);
  if (shape.send != Wanted::kNone && shape.receive != Wanted::kNone &&
      SizeOfAll(op.send[self.value()]) != SizeOfAll(op.receive[self.value()]))
    return wrong("what the rank sends itself is not what it receives");
  if (!Adds(op.kind)) return "";
  for (const std::string& what : {CutValues(op.send, op.type), CutValues(op.receive, op.type)}) {
    if (!what.empty()) return wrong(what);
  }
  return "";
}

OpSizer::OpSizer(Rank self, uint32_t ranks)
    : self_(self),
      from_self_(Power(kFrom, self.value())),
      to_self_(Power(kTo, self.value())),
      from_all_(PowerSum(kFrom, ranks)),
      to_all_(PowerSum(kTo, ranks)) {}

CommSizes OpSizer::SizesOf(const CommOp& op) const {
  Weighed send{.total = SendsOnePerRank(op.kind) ? 0 : SizeOfAll(op.send.views)};
  Weighed receive{.total = ReceivesOnePerRank(op.kind) ? 0 : SizeOfAll(op.receive.views)};
  // What is one for all counts for each that it goes to, or comes from.
  const bool one_sends = IsPointToPoint(op.kind) || op.kind == CommKind::kBroadcast;
  const uint64_t to = IsPointToPoint(op.kind) ? Power(kTo, op.peer.value())
                      : one_sends             ? to_all_ - to_self_
                                              : to_all_;
  send.sum = send.total * to;
  receive.sum = receive.total * (one_sends ? Power(kFrom, op.peer.value()) : from_all_);
  if (SendsOnePerRank(op.kind)) send = Weigh(op.send, kTo);
  if (ReceivesOnePerRank(op.kind)) receive = Weigh(op.receive, kFrom);
  return {.send = ToBytes(send.total),
          .receive = ToBytes(receive.total),
          .own = ToBytes(one_sends ? 0 : SizeOfAll(op.send[self_.value()])),
          .sent_sum = send.sum * from_self_,
          .received_sum = receive.sum * to_self_};
}

std::string OpName(const CommOp& op) {
  const size_t bytes =
      op.send.views.empty() ? SizeOfAll(op.receive.views) : SizeOfAll(op.send.views);
  const char* const name = Name(op.kind);
  switch (op.kind) {
    case CommKind::kReduceScatter:
    case CommKind::kAllReduce:
      return fmt::format("{} of {} bytes as {}", name, bytes, Name(op.type));
    case CommKind::kBroadcast:
    case CommKind::kReceive:
      return fmt::format("{} of {} bytes from rank {}", name, bytes, op.peer.value());
    case CommKind::kSend:
      return fmt::format("{} of {} bytes to rank {}", name, bytes, op.peer.value());
    case CommKind::kBarrier:
      return name;
    case CommKind::kAllGather:
    case CommKind::kAllToAll:
      break;
  }
  return fmt::format("{} of {} bytes", name, bytes);
}

bool Needs(const CommOp& op, Rank self, Rank other) {
  return self != other && (!IsPointToPoint(op.kind) || op.peer == other);
}

std::string DifferentCalls(const CommOp& a, Rank rank_a, const CommOp& b, Rank rank_b) {
  if (rank_b < rank_a) return DifferentCalls(b, rank_b, a, rank_a);
  const bool same_kind =
      IsPointToPoint(a.kind) ? IsPointToPoint(b.kind) && a.kind != b.kind : a.kind == b.kind;
  if (same_kind && a.tag == b.tag && (!Adds(a.kind) || a.type == b.type) &&
      (a.kind != CommKind::kBroadcast || a.peer == b.peer))
    return "";
  return fmt::format("rank {} calls {} with tag {}, rank {} {} with tag {}", rank_a.value(),
                     OpName(a), a.tag, rank_b.value(), OpName(b), b.tag);
}

std::string DifferentSizes(const CommOp& a, Rank rank_a, const CommOp& b, Rank rank_b) {
  const auto one_way = [](const CommOp& from, Rank rank_from, const CommOp& to, Rank rank_to) {
    if (from.kind == CommKind::kBroadcast && from.peer != rank_from) return std::string();
    const size_t sent = SizeOfAll(from.send[rank_to.value()]);
    const size_t expected = SizeOfAll(to.receive[rank_from.value()]);
    return sent == expected ? "" : Sizes(from, rank_from, sent, rank_to, expected);
  };
  const std::string there = one_way(a, rank_a, b, rank_b);
  return there.empty() ? one_way(b, rank_b, a, rank_a) : there;
}

Bytes SentBytes(const CommOp& op, uint32_t ranks) {
  if (ranks == 1) return Bytes(0);
  if (op.kind == CommKind::kAllGather) return op.sizes().send * (ranks - 1);
  if (op.kind == CommKind::kAllReduce) return op.sizes().send * 2 * (ranks - 1) / ranks;
  return op.sizes().send - op.sizes().own;
}

Bytes ReceivedBytes(const CommOp& op, uint32_t ranks) {
  if (ranks == 1) return Bytes(0);
  if (op.kind == CommKind::kReduceScatter) return op.sizes().receive * (ranks - 1);
  if (op.kind == CommKind::kAllReduce) return op.sizes().receive * 2 * (ranks - 1) / ranks;
  return op.sizes().receive - op.sizes().own;
}

}  // namespace sluice
