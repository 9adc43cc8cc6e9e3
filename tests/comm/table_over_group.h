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

class TableOverGroup final : public Waker, public Event {
 public:
  // `inner` is this rank's.
  explicit TableOverGroup(std::unique_ptr<Communicator> inner) : inner_(std::move(inner)) {
    inbox_.SetWaker(this);
    op_.inbox = &inbox_;
    op_.event = this;
  }

  sluice_comm_table table() {
    return {.struct_size = sizeof(sluice_comm_table),
            .context = this,
            .rank = inner_->rank().value(),
            .ranks = inner_->ranks(),
            .start = [](void* context, const sluice_comm_call* call, char*, size_t) -> int32_t {
              static_cast<TableOverGroup*>(context)->Start(*call);
              return SLUICE_COMM_ENDED;
            },
            .wait = [](void* context, int32_t timeout_ms, char* error, size_t bytes) -> int32_t {
              return static_cast<TableOverGroup*>(context)->Wait(timeout_ms, error, bytes);
            },
            .abort =
                [](void* context) {
                  static_cast<TableOverGroup*>(context)->inner_->Abort(
                      absl::AbortedError("by the table"));
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
  void Handle() override { ended_ = true; }

 private:
  void Start(const sluice_comm_call& call) {
    const std::span send(call.send, call.send_count);
    const std::span receive(call.receive, call.receive_count);
    const auto view = [](const sluice_comm_buffer& buffer) {
      return MemoryView(static_cast<std::byte*>(buffer.data), buffer.bytes);
    };
    send_.resize(send.size());
    receive_.resize(receive.size());
    std::ranges::transform(send, send_.begin(), view);
    std::ranges::transform(receive, receive_.begin(), view);
    op_.kind = static_cast<CommKind>(call.kind);
    op_.type = static_cast<FloatType>(call.dtype);
    op_.peer = Rank(call.peer);
    op_.send = send_;
    op_.receive = receive_;
    ended_ = false;
    inner_->Enqueue(&op_);
  }

  int32_t Wait(int32_t timeout_ms, char* error, size_t bytes) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [this] { return woken_; });
      woken_ = false;
    }
    inbox_.HandleAll();
    if (!ended_) return SLUICE_COMM_PENDING;
    if (op_.status.ok()) return SLUICE_COMM_ENDED;
    const std::string_view message = Message(op_.status);
    const size_t length = std::min(message.size(), bytes - 1);
    std::memcpy(error, message.data(), length);
    error[length] = '\0';
    return SLUICE_COMM_FAILED;
  }

  const std::unique_ptr<Communicator> inner_;
  CommOp op_;
  std::vector<ConstMemoryView> send_;
  std::vector<MemoryView> receive_;
  Inbox inbox_;
  bool ended_ = false;  // of the thread that starts and waits
  std::mutex mutex_;
  std::condition_variable changed_;
  bool woken_ = false;  // guarded by mutex_
};

}  // namespace sluice

#endif  // SLUICE_TESTS_COMM_TABLE_OVER_GROUP_H_
