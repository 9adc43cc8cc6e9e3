#include "comm/in_process.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "comm/attendance.h"
#include "comm/local_ops.h"
#include "comm/threaded_communicator.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

// How often a fence is asked; on the host device fences are complete at once.
constexpr Nanos kFencePoll = std::chrono::microseconds(100);
constexpr Nanos kLongestWait = std::chrono::hours(1);  // of the condition variable, at a time

// Who hears that the group is broken. Called with the room's mutex held.
class Member {
 public:
  virtual ~Member() = default;
  virtual void OnBroken(const absl::Status& why) = 0;
};

// Where the ranks' threads meet. What has begun can't fail any more: it ends when all have done
// their parts, and only then does anyone's memory change hands.
class Room {
 public:
  explicit Room(uint32_t ranks) : attendance_(ranks), seats_(ranks) {}

  void Enter(Rank rank, Member* member) {
    const std::lock_guard lock(mutex_);
    seats_[rank.value()].member = member;
  }

  void Leave(Rank rank) {
    const std::lock_guard lock(mutex_);
    seats_[rank.value()].member = nullptr;
    BreakGroup(attendance_.Leave(rank));
  }

  void Break(const absl::Status& why) {
    const std::lock_guard lock(mutex_);
    BreakGroup(why);
  }

  absl::Status CarryOut(Rank rank, CommOp* op, LocalPart* part, Deadline deadline,
                        const Clock& clock) {
    std::unique_lock lock(mutex_);
    if (op->after != nullptr) AwaitFence(lock, rank, *op->after, deadline, clock);
    if (!broken_.ok() || !AwaitBeginning(lock, rank, op, deadline, clock)) return broken_;
    const int phases = LocalPart::phases(op->kind);
    for (int phase = 0; phase < phases; ++phase) {
      lock.unlock();
      part->Do(*op, attendance_.ops(), phase);
      lock.lock();
      AwaitParts(lock, rank, *op, phase + 1 == phases);
    }
    return absl::OkStatus();
  }

 private:
  struct Seat {
    Member* member = nullptr;
    bool received = false;  // what it sends: its peer has done its part
    std::condition_variable changed;
  };

  void BreakGroup(const absl::Status& why) {
    if (why.ok() || !broken_.ok()) return;
    broken_ = why;
    for (Seat& seat : seats_) {
      if (seat.member != nullptr) seat.member->OnBroken(why);
      seat.changed.notify_one();
    }
  }

  void AwaitFence(std::unique_lock<std::mutex>& lock, Rank rank, const Fence& fence,
                  Deadline deadline, const Clock& clock) {
    while (broken_.ok() && !fence.Complete()) {
      if (clock.Now() >= deadline) {
        return BreakGroup(absl::DeadlineExceededError(fmt::format(
            "rank {}: the work that an operation was ordered after has not ended", rank.value())));
      }
      seats_[rank.value()].changed.wait_for(lock, kFencePoll);
    }
  }

  // Returns whether it has begun; if not, the group is broken.
  bool AwaitBeginning(std::unique_lock<std::mutex>& lock, Rank rank, CommOp* op, Deadline deadline,
                      const Clock& clock) {
    const absl::StatusOr<bool> begins = attendance_.Come(rank, op);
    if (!begins.ok()) {
      BreakGroup(begins.status());
    } else if (*begins) {
      attendance_.ForParticipants(
          rank, [this](Rank other) { seats_[other.value()].changed.notify_one(); });
    }
    while (broken_.ok() && !attendance_.running(rank)) {
      const Nanos left = deadline - clock.Now();
      if (left <= Nanos(0)) {
        BreakGroup(absl::DeadlineExceededError(attendance_.WaitsFor(rank) + ", which is too long"));
      } else {
        seats_[rank.value()].changed.wait_for(lock, std::min(left, kLongestWait));
      }
    }
    if (attendance_.running(rank)) return true;
    attendance_.Go(rank);
    return false;
  }

  // This rank has done its part of a phase; returns when all have.
  void AwaitParts(std::unique_lock<std::mutex>& lock, Rank rank, const CommOp& op, bool last) {
    std::condition_variable& changed = seats_[rank.value()].changed;
    if (op.kind == CommKind::kSend) {
      changed.wait(lock, [&] { return seats_[rank.value()].received; });
      seats_[rank.value()].received = false;
      return attendance_.Go(rank);
    }
    if (op.kind == CommKind::kReceive) {
      attendance_.Go(rank);
      seats_[op.peer.value()].received = true;
      return seats_[op.peer.value()].changed.notify_one();
    }
    if (++parts_done_ < attendance_.ranks()) {
      const uint64_t phase = phase_;
      return changed.wait(lock, [&] { return phase_ != phase; });
    }
    parts_done_ = 0;
    ++phase_;
    for (uint32_t r = 0; r < attendance_.ranks(); ++r) {
      if (last) attendance_.Go(Rank(r));
      seats_[r].changed.notify_one();
    }
  }

  std::mutex mutex_;
  Attendance attendance_;  // this and below guarded by mutex_; running operations' entries are
                           // read without it
  std::vector<Seat> seats_;
  absl::Status broken_;
  uint32_t parts_done_ = 0;  // of the collective that runs, in this phase
  uint64_t phase_ = 0;       // of all collectives so far
};

class InProcess final : public ThreadedCommunicator, private Member {
 public:
  InProcess(std::shared_ptr<Room> room, Rank rank, uint32_t ranks, const CommOptions& options,
            const Clock* clock)
      : ThreadedCommunicator(rank, ranks, options, clock),
        room_(std::move(room)),
        part_(rank, ranks) {
    room_->Enter(rank, this);
  }
  ~InProcess() override { (void)Close(); }

  absl::Status StartThread() { return ThreadedCommunicator::StartThread(); }

  std::string description() const override {
    return fmt::format("{} ranks in one process: threads, shared memory", ranks());
  }

 private:
  absl::Status CarryOut(CommOp* op, Deadline deadline) override {
    const absl::Status status = room_->CarryOut(rank(), op, &part_, deadline, clock());
    return status.ok() || this->status().ok() ? status : this->status();  // what came first
  }
  void Interrupt(const absl::Status& why) override {
    room_->Break(absl::UnavailableError(
        fmt::format("rank {} was aborted: {}", rank().value(), Message(why))));
  }
  void Leave() override { room_->Leave(rank()); }
  void OnBroken(const absl::Status& why) override { Break(why); }

  const std::shared_ptr<Room> room_;
  LocalPart part_;
};

}  // namespace

absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> MakeInProcessRanks(
    uint32_t ranks, const CommOptions& options, const Clock* clock) {
  SLUICE_CHECK(ranks >= 1 && ranks <= kRanksMax);
  const auto room = std::make_shared<Room>(ranks);
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (uint32_t r = 0; r < ranks; ++r) {
    auto communicator = std::make_unique<InProcess>(room, Rank(r), ranks, options, clock);
    SLUICE_RETURN_IF_ERROR(communicator->StartThread());
    communicators.push_back(std::move(communicator));
  }
  return communicators;
}

}  // namespace sluice
