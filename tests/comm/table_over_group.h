// tests/comm/table_over_group.h
//
// What a framework would supply: a table of C functions for each rank, over a group in one process.

#ifndef SLUICE_TESTS_COMM_TABLE_OVER_GROUP_H_
#define SLUICE_TESTS_COMM_TABLE_OVER_GROUP_H_

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "comm/comm_table.h"
#include "comm/communicator.h"
#include "core/event.h"
#include "core/status.h"

namespace sluice {

class TableOverGroup final : public Waker {
 public:
  // `inner` is this rank's. So many operations may be under way.
  TableOverGroup(std::unique_ptr<Communicator> inner, uint32_t in_flight)
      : inner_(std::move(inner)), calls_(in_flight) {
    inbox_.SetWaker(this);
    for (Call& call : calls_) {
      call.op.inbox = &inbox_;
      call.op.event = &call;
    }
  }

  sluice_comm_table table() {
    return {.struct_size = sizeof(sluice_comm_table),
            .context = this,
            .rank = inner_->rank().value(),
            .ranks = inner_->ranks(),
            .start = [](void* context, const sluice_comm_call* call, uint64_t operation, char*,
                        size_t) -> int32_t {
              static_cast<TableOverGroup*>(context)->Start(*call, operation);
              return SLUICE_COMM_ENDED;
            },
            .wait = [](void* context, uint64_t operation, int32_t timeout_ms, char* error,
                       size_t bytes) -> int32_t {
              return static_cast<TableOverGroup*>(context)->Wait(operation, timeout_ms, error,
                                                                 bytes);
            },
            .abort =
                [](void* context, const char* why) {
                  static_cast<TableOverGroup*>(context)->inner_->Abort(absl::AbortedError(why));
                },
            .close =
                [](void* context) { (void)static_cast<TableOverGroup*>(context)->inner_->Close(); },
            .description = "a group in one process"};
  }

  void Wake() override {
    {
      const std::lock_guard lock(mutex_);
      woken_ = true;
    }
    changed_.notify_one();
  }

 private:
  struct Call final : Event {
    void Handle() override { ended = true; }
    CommOp op;
    std::vector<ConstMemoryView> send;
    std::vector<MemoryView> receive;
    std::vector<uint32_t> send_ends;
    std::vector<uint32_t> receive_ends;
    bool ended = false;  // of the thread that waits
  };

  void Start(const sluice_comm_call& from, uint64_t operation) {
    Call& call = calls_[operation % calls_.size()];
    const auto take = [this](const sluice_comm_segments& segments, bool one_per_rank, auto* views,
                             std::vector<uint32_t>* ends) {
      views->clear();
      for (const sluice_comm_buffer& buffer : std::span(segments.buffers, segments.count))
        views->push_back(MemoryView(static_cast<std::byte*>(buffer.data), buffer.bytes));
      SLUICE_CHECK(one_per_rank == (segments.ends != nullptr));
      ends->assign(segments.ends, segments.ends + (one_per_rank ? inner_->ranks() : 0));
    };
    call.op.kind = static_cast<CommKind>(from.kind);
    call.op.type = static_cast<FloatType>(from.dtype);
    call.op.peer = Rank(from.peer);
    call.op.tag = from.tag;
    take(from.send, SendsOnePerRank(call.op.kind), &call.send, &call.send_ends);
    take(from.receive, ReceivesOnePerRank(call.op.kind), &call.receive, &call.receive_ends);
    call.op.send = {call.send, call.send_ends};
    call.op.receive = {call.receive, call.receive_ends};
    call.ended = false;
    inner_->Enqueue(&call.op);
  }

  int32_t Wait(uint64_t operation, int32_t timeout_ms, char* error, size_t bytes) {
    const Call& call = calls_[operation % calls_.size()];
    inbox_.HandleAll();
    if (!call.ended) {
      {
        std::unique_lock lock(mutex_);
        changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [this] { return woken_; });
        woken_ = false;
      }
      inbox_.HandleAll();
    }
    if (!call.ended) return SLUICE_COMM_PENDING;
    if (call.op.status.ok()) return SLUICE_COMM_ENDED;
    const std::string_view message = Message(call.op.status);
    const size_t length = std::min(message.size(), bytes - 1);
    std::memcpy(error, message.data(), length);
    error[length] = '\0';
    return SLUICE_COMM_FAILED;
  }

  const std::unique_ptr<Communicator> inner_;
  std::vector<Call> calls_;  // by number, from the start again
  Inbox inbox_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool woken_ = false;  // guarded by mutex_
};

}  // namespace sluice

#endif  // SLUICE_TESTS_COMM_TABLE_OVER_GROUP_H_
