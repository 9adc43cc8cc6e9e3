#include "tests/comm/fake_nccl/stream.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "core/float_bits.h"
#include "core/grid.h"

namespace fake_nccl {

namespace {

using sluice::FloatType;
using sluice::NcclType;

float Load(NcclType type, const std::byte* at) {
  if (type == sluice::kNcclFloat32) {
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return sluice::ToFloat(bits, type == sluice::kNcclFloat16 ? FloatType::kF16 : FloatType::kBf16);
}

void Store(NcclType type, float value, std::byte* at) {
  if (type == sluice::kNcclFloat32) {
    std::memcpy(at, &value, sizeof(value));
    return;
  }
  const uint16_t bits =
      sluice::FromFloat(value, type == sluice::kNcclFloat16 ? FloatType::kF16 : FloatType::kBf16);
  std::memcpy(at, &bits, sizeof(bits));
}

}  // namespace

size_t SizeOf(NcclType type) {
  return type == sluice::kNcclUint8 ? 1 : type == sluice::kNcclFloat32 ? 4 : 2;
}

Stream::Stream() : thread_([this] { RunAll(); }) {}

Stream::~Stream() {
  stopping_ = true;
  { const std::lock_guard lock(mutex_); }
  changed_.notify_one();
  thread_.join();
}

void Stream::Push(Work work) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(work));
    ++pushed_;
  }
  changed_.notify_one();
}

uint64_t Stream::Mark() {
  const std::lock_guard lock(mutex_);
  return pushed_ + 1;
}

bool Stream::Passed(uint64_t mark) {
  const std::lock_guard lock(mutex_);
  return run_ + 1 >= mark;
}

void Stream::RunAll() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    Work work = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    Run(&work);
    work = {};
    lock.lock();
    ++run_;
  }
}

void Stream::Run(Work* work) {
  for (size_t i = 0; i < work->copies.size(); ++i) {
    if (work->comm != nullptr && work->comm->aborted) return;
    const Transfer& copy = work->copies[i];
    if (copy.bytes > 0 && copy.data != work->copies_to[i])
      std::memmove(work->copies_to[i], copy.data, copy.bytes);
  }
  if (work->comm == nullptr) return;
  CommState& comm = *work->comm;
  const bool hangs = work->hangs_with != sluice::kNcclSuccess;
  if (hangs) comm.error = work->hangs_with;
  const auto all_moved = [&] {
    return !hangs && std::ranges::all_of(work->transfers, [](const Transfer& transfer) {
      return transfer.bytes == 0;
    });
  };
  for (int idle = 0; !all_moved(); ++idle) {
    if (comm.aborted || stopping_) return;
    if (!hangs && Progress(work)) idle = 0;
    if (idle < 50) {
      std::this_thread::yield();
      continue;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    for (uint32_t r = 0; comm.sees_deaths && r < comm.world->ranks(); ++r) {
      if (comm.world->Dead(r)) comm.error = sluice::kNcclRemoteError;
    }
  }
  for (const Sum& sum : work->sums) {
    if (comm.aborted) return;
    Add(*work, sum);
  }
}

// To and from each rank one after the other; returns whether any byte moved.
bool Stream::Progress(Work* work) {
  const CommState& comm = *work->comm;
  uint64_t blocked[2] = {0, 0};  // by direction, a bit for each rank
  bool moved = false;
  for (Transfer& transfer : work->transfers) {
    const uint64_t bit = uint64_t{1} << transfer.peer;
    uint64_t& mask = blocked[transfer.sends ? 1 : 0];
    if (transfer.bytes == 0 || (mask & bit) != 0) continue;
    const size_t n =
        transfer.sends ? comm.world->Write(comm.rank, transfer.peer, transfer.data, transfer.bytes)
                       : comm.world->Read(transfer.peer, comm.rank, transfer.data, transfer.bytes);
    transfer.data += n;
    transfer.bytes -= n;
    moved |= n > 0;
    if (transfer.bytes > 0) mask |= bit;
  }
  return moved;
}

// In the order of the ranks, rounded once.
void Stream::Add(const Work& work, const Sum& sum) {
  const CommState& comm = *work.comm;
  const size_t size = SizeOf(sum.type);
  for (size_t at = 0; at < sum.bytes; at += size) {
    float total = 0;
    size_t other = sum.others;
    for (uint32_t r = 0; r < comm.world->ranks(); ++r) {
      const bool own = r == comm.rank;
      total += Load(sum.type, own ? sum.own + at : work.buffer.data() + other + at);
      if (!own) other += sum.bytes;
    }
    Store(sum.type, total, sum.to + at);
  }
}

}  // namespace fake_nccl
