#include "comm/nccl_calls.h"

#include <algorithm>

#include "comm/op_rules.h"
#include "core/status.h"

namespace sluice {

namespace {

// From the first byte to the last, if nothing lies between them; empty views lie nowhere.
template <typename View>
struct Piece {
  View view;
  bool whole = true;
};
template <typename View>
Piece<View> Joined(std::span<const View> views) {
  Piece<View> piece;
  for (const View& view : views) {
    if (view.empty()) continue;
    if (piece.view.empty()) {
      piece.view = view;
    } else if (piece.view.data() + piece.view.size() == view.data()) {
      piece.view = View(piece.view.data(), piece.view.size() + view.size());
    } else {
      piece.whole = false;
    }
  }
  return piece;
}

template <typename View>
uint32_t LayoutOf(const Segments<View>& segments, uint32_t ranks) {
  const uint32_t parts = segments.ends.empty() ? 1 : ranks;
  for (uint32_t r = 0; r < parts; ++r) {
    if (!Joined(segments[r]).whole) return 0;
  }
  return kEachInOnePiece | (Joined(segments.views).whole ? kAllInOnePiece : 0);
}

template <typename View>
bool SameForEach(const Segments<View>& segments, uint32_t ranks) {
  const size_t size = SizeOfAll(segments[0]);
  for (uint32_t r = 1; r < ranks; ++r) {
    if (SizeOfAll(segments[r]) != size) return false;
  }
  return true;
}

NcclType TypeOf(FloatType type) {
  return type == FloatType::kF32    ? kNcclFloat32
         : type == FloatType::kBf16 ? kNcclBfloat16
                                    : kNcclFloat16;
}

bool SendsTo(const CommOp& op, Rank self, Rank other) {
  if (op.kind == CommKind::kBroadcast) return self == op.peer;
  if (op.kind == CommKind::kSend) return other == op.peer;
  return op.kind == CommKind::kAllGather || op.kind == CommKind::kAllToAll;
}
bool ReceivesFrom(const CommOp& op, Rank self, Rank other) {
  if (op.kind == CommKind::kBroadcast) return self != op.peer && other == op.peer;
  if (op.kind == CommKind::kReceive) return other == op.peer;
  return op.kind == CommKind::kAllGather || op.kind == CommKind::kAllToAll;
}

}  // namespace

uint32_t LayoutOf(const CommOp& op, uint32_t ranks) {
  return LayoutOf(op.send, ranks) & LayoutOf(op.receive, ranks);
}

NcclCalls::NcclCalls(NcclHandle* handle, SideStream* stream, Rank self, uint32_t ranks)
    : handle_(*handle), stream_(*stream), self_(self), ranks_(ranks), ways_(ranks) {}

absl::Status NcclCalls::Launch(const CommOp& op, uint32_t layout, const NcclPatience& patience) {
  const bool each = (layout & kEachInOnePiece) != 0;
  switch (op.kind) {
    case CommKind::kAllGather:
      return Gather(op, layout, patience);
    case CommKind::kReduceScatter:
      return ReduceToEach(op, layout, patience);
    case CommKind::kAllReduce:
      return ReduceToAll(op, layout, patience);
    case CommKind::kBroadcast:
      return each ? Broadcast(op, patience) : Move(op, false, patience);
    case CommKind::kAllToAll:
    case CommKind::kSend:
    case CommKind::kReceive:
      return Move(op, each, patience);
    case CommKind::kBarrier:  // all have come to it
      break;
  }
  return absl::OkStatus();
}

template <typename F>
absl::Status NcclCalls::Group(const char* what, const NcclPatience& patience, F&& calls) {
  NcclResult first = handle_.api().GroupStart();
  if (first != kNcclSuccess)
    return handle_.library().ToStatus(first, "ncclGroupStart", handle_.comm());
  calls([&](NcclResult result) {
    if (first == kNcclSuccess && result != kNcclInProgress) first = result;
  });
  const NcclResult end = handle_.api().GroupEnd();
  if (first != kNcclSuccess) return handle_.library().ToStatus(first, what, handle_.comm());
  return handle_.Settle(end, what, patience);
}

absl::Status NcclCalls::Gather(const CommOp& op, uint32_t layout, const NcclPatience& patience) {
  if ((layout & kEachInOnePiece) == 0) return Move(op, false, patience);
  const ConstMemoryView send = Joined(op.send.views).view;
  const MemoryView all = Joined(op.receive.views).view;
  if (all.empty()) return absl::OkStatus();  // of all ranks
  NcclComm* const comm = handle_.comm();
  if ((layout & kAllInOnePiece) != 0 && SameForEach(op.receive, ranks_)) {
    return Group("ncclAllGather", patience, [&](auto&& check) {
      check(handle_.api().AllGather(send.data(), all.data(), send.size(), kNcclUint8, comm,
                                    stream_.handle()));
    });
  }
  return Group("ncclBroadcast", patience, [&](auto&& check) {
    for (uint32_t r = 0; r < ranks_; ++r) {
      const MemoryView to = Joined(op.receive[r]).view;
      if (to.empty()) continue;
      const std::byte* const from = r == self_.value() ? send.data() : to.data();
      check(handle_.api().Broadcast(from, to.data(), to.size(), kNcclUint8, static_cast<int>(r),
                                    comm, stream_.handle()));
    }
  });
}

absl::Status NcclCalls::ReduceToEach(const CommOp& op, uint32_t layout,
                                     const NcclPatience& patience) {
  const NcclType type = TypeOf(op.type);
  const auto size = static_cast<size_t>(SizeOf(op.type));
  NcclComm* const comm = handle_.comm();
  const auto reduce = [&](const void* from, void* to, size_t bytes, uint32_t root) {
    return handle_.api().Reduce(from, to, bytes / size, type, kNcclSum, static_cast<int>(root),
                                comm, stream_.handle());
  };
  if ((layout & kEachInOnePiece) != 0) {
    const MemoryView to = Joined(op.receive.views).view;
    if ((layout & kAllInOnePiece) != 0 && SameForEach(op.send, ranks_)) {
      if (to.empty()) return absl::OkStatus();
      return Group("ncclReduceScatter", patience, [&](auto&& check) {
        check(handle_.api().ReduceScatter(Joined(op.send.views).view.data(), to.data(),
                                          to.size() / size, type, kNcclSum, comm,
                                          stream_.handle()));
      });
    }
    return Group("ncclReduce", patience, [&](auto&& check) {
      for (uint32_t r = 0; r < ranks_; ++r) {
        const ConstMemoryView from = Joined(op.send[r]).view;
        if (from.empty()) continue;
        check(reduce(from.data(), r == self_.value() ? to.data() : nullptr, from.size(), r));
      }
    });
  }
  // Each rank's part has a place in staging, where it is added up.
  const size_t piece = PieceOf(ranks_);
  size_t longest = 0;
  for (uint32_t r = 0; r < ranks_; ++r) {
    ways_[r].to = ViewCursor(op.send[r]);
    ways_[r].send = SizeOfAll(op.send[r]);
    longest = std::max(longest, ways_[r].send);
  }
  ViewCursor<MemoryView> receive(op.receive.views);
  for (size_t done = 0; done < longest; done += piece) {
    const auto place = [&](uint32_t r) {
      const size_t left = ways_[r].send - std::min(done, ways_[r].send);
      return stream_.staging().subspan(r * piece, std::min(piece, left));
    };
    for (uint32_t r = 0; r < ranks_; ++r) SLUICE_RETURN_IF_ERROR(Pack(&ways_[r].to, place(r)));
    SLUICE_RETURN_IF_ERROR(Group("ncclReduce", patience, [&](auto&& check) {
      for (uint32_t r = 0; r < ranks_; ++r) {
        const MemoryView here = place(r);
        if (!here.empty()) check(reduce(here.data(), here.data(), here.size(), r));
      }
    }));
    SLUICE_RETURN_IF_ERROR(Unpack(place(self_.value()), &receive));
  }
  return absl::OkStatus();
}

absl::Status NcclCalls::ReduceToAll(const CommOp& op, uint32_t layout,
                                    const NcclPatience& patience) {
  const auto size = static_cast<size_t>(SizeOf(op.type));
  const auto reduce = [&](const void* from, void* to, size_t bytes) {
    return Group("ncclAllReduce", patience, [&](auto&& check) {
      check(handle_.api().AllReduce(from, to, bytes / size, TypeOf(op.type), kNcclSum,
                                    handle_.comm(), stream_.handle()));
    });
  };
  const size_t bytes = op.sizes().send.size();
  if (bytes == 0) return absl::OkStatus();
  if ((layout & kEachInOnePiece) != 0)
    return reduce(Joined(op.send.views).view.data(), Joined(op.receive.views).view.data(), bytes);
  ViewCursor<ConstMemoryView> send(op.send.views);
  ViewCursor<MemoryView> receive(op.receive.views);
  const size_t piece = PieceOf(1);
  for (size_t done = 0; done < bytes; done += piece) {
    const MemoryView place = stream_.staging().first(std::min(piece, bytes - done));
    SLUICE_RETURN_IF_ERROR(Pack(&send, place));
    SLUICE_RETURN_IF_ERROR(reduce(place.data(), place.data(), place.size()));
    SLUICE_RETURN_IF_ERROR(Unpack(place, &receive));
  }
  return absl::OkStatus();
}

absl::Status NcclCalls::Broadcast(const CommOp& op, const NcclPatience& patience) {
  const MemoryView to = Joined(op.receive.views).view;
  const ConstMemoryView from = self_ == op.peer ? Joined(op.send.views).view : ConstMemoryView(to);
  if (from.empty()) return absl::OkStatus();
  // The root receives into what it sends: in place.
  auto* const at = const_cast<std::byte*>(from.data());
  return Group("ncclBroadcast", patience, [&](auto&& check) {
    check(handle_.api().Broadcast(at, at, from.size(), kNcclUint8,
                                  static_cast<int>(op.peer.value()), handle_.comm(),
                                  stream_.handle()));
  });
}

void NcclCalls::SetWays(const CommOp& op) {
  for (uint32_t r = 0; r < ranks_; ++r) {
    const bool other = r != self_.value();
    const bool sends = other && SendsTo(op, self_, Rank(r));
    const bool receives = other && ReceivesFrom(op, self_, Rank(r));
    ways_[r] = {};
    if (sends) ways_[r].to = ViewCursor(op.send[r]);
    if (receives) ways_[r].from = ViewCursor(op.receive[r]);
    ways_[r].send = sends ? SizeOfAll(op.send[r]) : 0;
    ways_[r].receive = receives ? SizeOfAll(op.receive[r]) : 0;
  }
}

absl::Status NcclCalls::Move(const CommOp& op, bool in_place, const NcclPatience& patience) {
  SetWays(op);
  if (op.kind == CommKind::kAllGather || op.kind == CommKind::kAllToAll) {
    ViewCursor<ConstMemoryView> from(op.send[self_.value()]);
    ViewCursor<MemoryView> to(op.receive[self_.value()]);
    SLUICE_RETURN_IF_ERROR(Copy(&from, &to, SIZE_MAX));
  }
  size_t longest = 0;
  for (const Way& way : ways_) longest = std::max({longest, way.send, way.receive});
  if (longest == 0) return absl::OkStatus();
  if (!in_place) return MovePieces(longest, patience);
  return Group("ncclSend", patience, [&](auto&& check) {
    for (uint32_t r = 0; r < ranks_; ++r) {
      const auto peer = static_cast<int>(r);
      if (ways_[r].send > 0)
        check(handle_.api().Send(Joined(op.send[r]).view.data(), ways_[r].send, kNcclUint8, peer,
                                 handle_.comm(), stream_.handle()));
      if (ways_[r].receive > 0)
        check(handle_.api().Recv(Joined(op.receive[r]).view.data(), ways_[r].receive, kNcclUint8,
                                 peer, handle_.comm(), stream_.handle()));
    }
  });
}

// Both ends know how large a message is, and so how large each piece of it. Who has nothing more to
// say to anybody is done.
absl::Status NcclCalls::MovePieces(size_t longest, const NcclPatience& patience) {
  const size_t piece = PieceOf(size_t{2} * ranks_);
  for (size_t done = 0; done < longest; done += piece) {
    const auto place = [&](size_t index, size_t all) {
      return stream_.staging().subspan(index * piece, std::min(piece, all - std::min(done, all)));
    };
    for (uint32_t r = 0; r < ranks_; ++r)
      SLUICE_RETURN_IF_ERROR(Pack(&ways_[r].to, place(r, ways_[r].send)));
    SLUICE_RETURN_IF_ERROR(Group("ncclSend", patience, [&](auto&& check) {
      for (uint32_t r = 0; r < ranks_; ++r) {
        const auto peer = static_cast<int>(r);
        const MemoryView to = place(r, ways_[r].send);
        const MemoryView from = place(ranks_ + r, ways_[r].receive);
        if (!to.empty())
          check(handle_.api().Send(to.data(), to.size(), kNcclUint8, peer, handle_.comm(),
                                   stream_.handle()));
        if (!from.empty())
          check(handle_.api().Recv(from.data(), from.size(), kNcclUint8, peer, handle_.comm(),
                                   stream_.handle()));
      }
    }));
    for (uint32_t r = 0; r < ranks_; ++r)
      SLUICE_RETURN_IF_ERROR(Unpack(place(ranks_ + r, ways_[r].receive), &ways_[r].from));
  }
  return absl::OkStatus();
}

template <typename View>
absl::Status NcclCalls::Copy(ViewCursor<View>* from, ViewCursor<MemoryView>* to, size_t bytes) {
  while (true) {
    const size_t n = std::min({from->here().size(), to->here().size(), bytes});
    if (n == 0) return absl::OkStatus();
    if (from->here().data() != to->here().data())
      SLUICE_RETURN_IF_ERROR(stream_.Copy(from->here().first(n), to->here().data()));
    from->Advance(n);
    to->Advance(n);
    bytes -= n;
  }
}

absl::Status NcclCalls::Pack(ViewCursor<ConstMemoryView>* from, MemoryView to) {
  ViewCursor<MemoryView> place(std::span<const MemoryView>(&to, 1));
  return Copy(from, &place, to.size());
}

absl::Status NcclCalls::Unpack(MemoryView from, ViewCursor<MemoryView>* to) {
  ViewCursor<MemoryView> place(std::span<const MemoryView>(&from, 1));
  return Copy(&place, to, from.size());
}

size_t NcclCalls::PieceOf(size_t parts) const {
  return stream_.staging().size() / parts / kAlignment * kAlignment;
}

}  // namespace sluice
