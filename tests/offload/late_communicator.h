// tests/offload/late_communicator.h
//
// A communicator whose operations begin late, as over a slow network: what a rank has said comes
// back after other things have happened to it. And one may look at each.

#ifndef SLUICE_TESTS_OFFLOAD_LATE_COMMUNICATOR_H_
#define SLUICE_TESTS_OFFLOAD_LATE_COMMUNICATOR_H_

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "comm/communicator.h"

namespace sluice::testing {

class LateCommunicator final : public Communicator, private Waker, private Event {
 public:
  using Look = std::function<void(const CommOp&)>;  // on a thread of its own

  LateCommunicator(std::unique_ptr<Communicator> inner, Nanos delay, const Clock* clock,
                   Look look = nullptr)
      : Communicator(inner->rank(), inner->ranks(), {}, clock),
        inner_(std::move(inner)),
        delay_(delay),
        look_(std::move(look)) {
    inbox_.SetWaker(this);
    thread_ = std::thread([this] { Run(); });
  }
  ~LateCommunicator() override { Close().IgnoreError(); }

  std::string description() const override { return "late: " + inner_->description(); }

 private:
  void Start(CommOp* op) override {
    const std::lock_guard lock(mutex_);
    ops_.push_back(op);
    changed_.notify_all();
  }
  void Interrupt(const absl::Status& why) override { inner_->Abort(why); }
  void Leave() override {
    {
      const std::lock_guard lock(mutex_);
      leaves_ = true;
      changed_.notify_all();
    }
    if (thread_.joinable()) thread_.join();
    inner_->Close().IgnoreError();
  }

  void Wake() override {
    const std::lock_guard lock(mutex_);
    changed_.notify_all();
  }
  void Handle() override { done_ = true; }

  void Run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return leaves_ || !ops_.empty(); });
      if (ops_.empty()) return;
      CommOp* const op = ops_.front();
      ops_.pop_front();
      lock.unlock();
      std::this_thread::sleep_for(delay_);
      const absl::Status status = Carry(*op);
      End(op, status);
      lock.lock();
    }
  }

  absl::Status Carry(const CommOp& op) {
    if (look_) look_(op);
    CommOp carried;
    carried.kind = op.kind;
    carried.type = op.type;
    carried.peer = op.peer;
    carried.tag = op.tag;
    carried.send = op.send;
    carried.receive = op.receive;
    carried.after = op.after;
    carried.inbox = &inbox_;
    carried.event = this;
    done_ = false;
    inner_->Enqueue(&carried);
    while (!done_) {
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return !inbox_.empty(); });
      }
      inbox_.HandleAll();
    }
    return carried.status;
  }

  const std::unique_ptr<Communicator> inner_;
  const Nanos delay_;
  const Look look_;
  Inbox inbox_;
  bool done_ = false;  // the thread's
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<CommOp*> ops_;  // this and below guarded by mutex_
  bool leaves_ = false;
  std::thread thread_;
};

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_OFFLOAD_LATE_COMMUNICATOR_H_
