#include "tests/comm/fake_nccl/fake_nccl.h"

#include <atomic>
#include <cstring>
#include <memory>
#include <utility>

#include "comm/nccl_api.h"
#include "tests/comm/fake_nccl/faults.h"
#include "tests/comm/fake_nccl/stream.h"
#include "tests/comm/fake_nccl/world.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

using fake_nccl::CommState;
using fake_nccl::Fault;
using fake_nccl::Faults;
using fake_nccl::Stream;
using fake_nccl::Vector;
using fake_nccl::Work;
using fake_nccl::World;
using sluice::kNcclInProgress;
using sluice::kNcclInvalidArgument;
using sluice::kNcclInvalidUsage;
using sluice::kNcclRemoteError;
using sluice::kNcclSuccess;
using sluice::kNcclSystemError;
using sluice::NcclComm;
using sluice::NcclConfig;
using sluice::NcclRedOp;
using sluice::NcclResult;
using sluice::NcclType;
using sluice::NcclUniqueId;

namespace {

std::atomic<int> communicators{0};
constexpr int kAsksUntilEnded = 3;

}  // namespace

struct sluice::NcclComm {
  std::shared_ptr<CommState> state = std::make_shared<CommState>();
  bool blocking = true;
  bool joining = false;
  bool never = false;  // what has begun does not end
  bool finalized = false;
  int asks_left = 0;  // until what has begun has ended
  // What goes to a stream when it has.
  Work deferred;
  Stream* deferred_to = nullptr;

  bool in_progress() const { return never || joining || asks_left > 0; }
};

namespace {

thread_local int group_depth = 0;
thread_local NcclResult group_error = kNcclSuccess;
thread_local bool group_never = false;
thread_local NcclComm* group_comm = nullptr;  // of the calls in the group: one communicator
thread_local Work group_work;
thread_local Stream* group_stream = nullptr;

void Release(NcclComm* comm) {
  delete comm;
  --communicators;
}

NcclResult Begin(NcclComm* comm) {
  if (comm->blocking) {
    if (comm->deferred_to != nullptr) comm->deferred_to->Push(std::move(comm->deferred));
    comm->deferred = {};
    comm->deferred_to = nullptr;
    return kNcclSuccess;
  }
  comm->asks_left = kAsksUntilEnded;
  return kNcclInProgress;
}

NcclResult EndGroup() {
  NcclComm* const comm = std::exchange(group_comm, nullptr);
  Work work = std::exchange(group_work, {});
  Stream* const stream = std::exchange(group_stream, nullptr);
  const NcclResult error = std::exchange(group_error, kNcclSuccess);
  const bool never = std::exchange(group_never, false);
  if (error != kNcclSuccess || comm == nullptr) return error;
  // What was received into the buffer, which has its size now.
  std::byte* at = work.buffer.data();
  for (fake_nccl::Transfer& transfer : work.transfers) {
    if (transfer.data != nullptr) continue;
    transfer.data = at;
    at += transfer.bytes;
  }
  comm->never = never;
  work.comm = comm->state;
  comm->deferred = std::move(work);
  comm->deferred_to = stream;
  return Begin(comm);
}

// One call: `add` says what is moved. Outside of a group it is one of its own.
template <typename F>
NcclResult Call(const char* function, NcclComm* comm, void* stream, F&& add) {
  const auto fail = [](NcclResult result) {
    if (group_depth > 0) group_error = result;
    return result;
  };
  if (comm == nullptr || stream == nullptr) return fail(kNcclInvalidArgument);
  if (comm->in_progress() || comm->finalized) return fail(kNcclInvalidArgument);
  if (group_comm != nullptr && group_comm != comm) return fail(kNcclInvalidUsage);
  const Fault fault = Faults::Get().Next(function);
  if (fault.kind == Fault::Kind::kError) return fail(fault.result);
  if (fault.kind == Fault::Kind::kNever) group_never = true;
  if (fault.kind == Fault::Kind::kLate) group_work.hangs_with = fault.result;
  group_comm = comm;
  group_stream = static_cast<Stream*>(stream);
  add(comm->state->rank, comm->state->world->ranks());
  return group_depth > 0 ? kNcclSuccess : EndGroup();
}

std::byte* Bytes(const void* memory) {
  return const_cast<std::byte*>(static_cast<const std::byte*>(memory));
}
void Move(bool sends, uint32_t peer, const void* data, size_t bytes) {
  if (bytes > 0) group_work.transfers.push_back({sends, peer, Bytes(data), bytes});
}
void CopyHere(const void* from, void* to, size_t bytes) {
  group_work.copies.push_back({false, 0, Bytes(from), bytes});
  group_work.copies_to.push_back(Bytes(to));
}
void SumHere(uint32_t self, uint32_t ranks, const void* own, void* to, size_t bytes,
             NcclType type) {
  Vector<std::byte>& buffer = group_work.buffer;
  group_work.sums.push_back({Bytes(own), buffer.size(), Bytes(to), bytes, type});
  for (uint32_t r = 0; r < ranks; ++r) {
    if (r != self) Move(false, r, nullptr, bytes);
  }
  buffer.resize(buffer.size() + (ranks - 1) * bytes);
}

}  // namespace

EXPORTED NcclResult ncclGetVersion(int* version) {
  *version = Faults::Get().version();
  return kNcclSuccess;
}
EXPORTED const char* ncclGetErrorString(NcclResult result) {
  return result == kNcclRemoteError ? "remote process exited" : "a fake error";
}
EXPORTED const char* ncclGetLastError(NcclComm*) { return "the last error"; }

EXPORTED NcclResult ncclGetUniqueId(NcclUniqueId* id) {
  if (const Fault fault = Faults::Get().Next("ncclGetUniqueId"); fault.kind != Fault::Kind::kNone)
    return fault.result;
  std::string name;
  if (!World::MakeName(&name)) return kNcclSystemError;
  std::memset(id, 0, sizeof(*id));
  std::memcpy(id->internal, name.c_str(), name.size());
  return kNcclSuccess;
}

EXPORTED NcclResult ncclCommInitRankConfig(NcclComm** comm, int ranks, NcclUniqueId id, int rank,
                                           NcclConfig* config) {
  if (config->magic != 0xcafebeef || rank < 0 || rank >= ranks) return kNcclInvalidArgument;
  const Fault fault = Faults::Get().Next("ncclCommInitRankConfig");
  if (fault.kind == Fault::Kind::kError) return fault.result;
  std::shared_ptr<World> world = World::Open(id.internal, static_cast<uint32_t>(ranks));
  if (world == nullptr) return kNcclSystemError;
  auto* const made = new NcclComm;
  ++communicators;
  made->state->world = std::move(world);
  made->state->rank = static_cast<uint32_t>(rank);
  made->state->sees_deaths = Faults::Get().deaths_seen();
  made->blocking = config->blocking != 0;
  made->joining = true;
  made->never = fault.kind == Fault::Kind::kNever;
  if (fault.kind == Fault::Kind::kLate) made->state->error = fault.result;
  *comm = made;
  made->state->world->Join(made->state->rank);
  while (made->blocking && !made->state->world->complete()) std::this_thread::yield();
  if (made->blocking) made->joining = false;
  return made->blocking ? kNcclSuccess : kNcclInProgress;
}

EXPORTED NcclResult ncclCommGetAsyncError(NcclComm* comm, NcclResult* error) {
  const Fault fault = Faults::Get().Next("ncclCommGetAsyncError");
  if (fault.kind == Fault::Kind::kError) return fault.result;
  if (fault.kind == Fault::Kind::kLate) comm->state->error = fault.result;
  if (comm->joining && comm->state->world->complete()) comm->joining = false;
  if (!comm->never && comm->asks_left > 0 && --comm->asks_left == 0 &&
      comm->deferred_to != nullptr) {
    comm->deferred_to->Push(std::exchange(comm->deferred, {}));
    comm->deferred_to = nullptr;
  }
  *error = comm->state->error;
  if (*error == kNcclSuccess && comm->in_progress()) *error = kNcclInProgress;
  return kNcclSuccess;
}

EXPORTED NcclResult ncclCommFinalize(NcclComm* comm) {
  if (comm->in_progress()) return kNcclInvalidArgument;
  const Fault fault = Faults::Get().Next("ncclCommFinalize");
  if (fault.kind == Fault::Kind::kError) return fault.result;
  comm->never = fault.kind == Fault::Kind::kNever;
  comm->finalized = true;
  return Begin(comm);
}
EXPORTED NcclResult ncclCommDestroy(NcclComm* comm) {
  if (comm->in_progress()) return kNcclInvalidArgument;
  const Fault fault = Faults::Get().Next("ncclCommDestroy");
  Release(comm);
  return fault.result;
}
EXPORTED NcclResult ncclCommAbort(NcclComm* comm) {
  comm->state->aborted = true;
  Release(comm);
  return kNcclSuccess;
}

EXPORTED NcclResult ncclGroupStart() {
  const Fault fault = Faults::Get().Next("ncclGroupStart");
  if (fault.kind == Fault::Kind::kError) return fault.result;
  ++group_depth;
  return kNcclSuccess;
}
EXPORTED NcclResult ncclGroupEnd() {
  const Fault fault = Faults::Get().Next("ncclGroupEnd");
  --group_depth;
  if (fault.kind == Fault::Kind::kError) group_error = fault.result;
  return EndGroup();
}

EXPORTED NcclResult ncclAllGather(const void* send, void* receive, size_t count, NcclType type,
                                  NcclComm* comm, void* stream) {
  return Call("ncclAllGather", comm, stream, [&](uint32_t self, uint32_t ranks) {
    const size_t bytes = count * fake_nccl::SizeOf(type);
    CopyHere(send, Bytes(receive) + self * bytes, bytes);
    for (uint32_t r = 0; r < ranks; ++r) {
      if (r == self) continue;
      Move(true, r, send, bytes);
      Move(false, r, Bytes(receive) + r * bytes, bytes);
    }
  });
}
EXPORTED NcclResult ncclReduceScatter(const void* send, void* receive, size_t count, NcclType type,
                                      NcclRedOp, NcclComm* comm, void* stream) {
  return Call("ncclReduceScatter", comm, stream, [&](uint32_t self, uint32_t ranks) {
    const size_t bytes = count * fake_nccl::SizeOf(type);
    for (uint32_t r = 0; r < ranks; ++r) {
      if (r != self) Move(true, r, Bytes(send) + r * bytes, bytes);
    }
    SumHere(self, ranks, Bytes(send) + self * bytes, receive, bytes, type);
  });
}
EXPORTED NcclResult ncclAllReduce(const void* send, void* receive, size_t count, NcclType type,
                                  NcclRedOp, NcclComm* comm, void* stream) {
  return Call("ncclAllReduce", comm, stream, [&](uint32_t self, uint32_t ranks) {
    const size_t bytes = count * fake_nccl::SizeOf(type);
    for (uint32_t r = 0; r < ranks; ++r) {
      if (r != self) Move(true, r, send, bytes);
    }
    SumHere(self, ranks, send, receive, bytes, type);
  });
}
EXPORTED NcclResult ncclReduce(const void* send, void* receive, size_t count, NcclType type,
                               NcclRedOp, int root, NcclComm* comm, void* stream) {
  return Call("ncclReduce", comm, stream, [&](uint32_t self, uint32_t ranks) {
    const size_t bytes = count * fake_nccl::SizeOf(type);
    const auto to = static_cast<uint32_t>(root);
    return self == to ? SumHere(self, ranks, send, receive, bytes, type)
                      : Move(true, to, send, bytes);
  });
}
EXPORTED NcclResult ncclBroadcast(const void* send, void* receive, size_t count, NcclType type,
                                  int root, NcclComm* comm, void* stream) {
  return Call("ncclBroadcast", comm, stream, [&](uint32_t self, uint32_t ranks) {
    const size_t bytes = count * fake_nccl::SizeOf(type);
    const auto from = static_cast<uint32_t>(root);
    if (self != from) return Move(false, from, receive, bytes);
    CopyHere(send, receive, bytes);
    for (uint32_t r = 0; r < ranks; ++r) {
      if (r != self) Move(true, r, send, bytes);
    }
  });
}
EXPORTED NcclResult ncclSend(const void* send, size_t count, NcclType type, int peer,
                             NcclComm* comm, void* stream) {
  return Call("ncclSend", comm, stream, [&](uint32_t, uint32_t) {
    Move(true, static_cast<uint32_t>(peer), send, count * fake_nccl::SizeOf(type));
  });
}
EXPORTED NcclResult ncclRecv(void* receive, size_t count, NcclType type, int peer, NcclComm* comm,
                             void* stream) {
  return Call("ncclRecv", comm, stream, [&](uint32_t, uint32_t) {
    Move(false, static_cast<uint32_t>(peer), receive, count * fake_nccl::SizeOf(type));
  });
}

EXPORTED void* sluiceFakeStreamMake() { return new Stream; }
EXPORTED void sluiceFakeStreamFree(void* stream) { delete static_cast<Stream*>(stream); }
EXPORTED void sluiceFakeStreamCopy(void* stream, void* to, const void* from, size_t bytes) {
  Work work;
  work.copies.push_back({false, 0, Bytes(from), bytes});
  work.copies_to.push_back(Bytes(to));
  static_cast<Stream*>(stream)->Push(std::move(work));
}
EXPORTED uint64_t sluiceFakeStreamMark(void* stream) {
  return static_cast<Stream*>(stream)->Mark();
}
EXPORTED int sluiceFakeStreamPassed(void* stream, uint64_t mark) {
  return static_cast<Stream*>(stream)->Passed(mark) ? 1 : 0;
}
EXPORTED void sluiceFakeSetFaults(const char* faults) { Faults::Get().Set(faults); }
EXPORTED int sluiceFakeFaultsMet() { return Faults::Get().met(); }
EXPORTED int sluiceFakeCommunicators() { return communicators; }
EXPORTED int sluiceFakeCalls(const char* function) { return Faults::Get().calls(function); }
