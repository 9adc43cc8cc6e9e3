#include "comm/in_process.h"

#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "comm/attendance.h"
#include "comm/local_part.h"
#include "core/intrusive_list.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

// What moves at most so much in all is carried out by who comes last: as long as waking a thread
// takes.
constexpr Bytes kAtOnce = KiB(64);
// How often a fence is asked; on the host device fences are complete at once.
constexpr Nanos kFencePoll = std::chrono::microseconds(100);
constexpr Nanos kLongestWait = std::chrono::hours(1);  // of the condition variable, at a time

// A rank's communicator, as the room sees it.
class Member {
 public:
  virtual ~Member() = default;
  virtual void OnBroken(const absl::Status& why) = 0;  // with the room's mutex held
  virtual void EndOp(CommOp* op, const absl::Status& status) = 0;
};

// Where the ranks meet. What has begun can't fail any more: it ends when all have done their parts,
// and only then does anyone's memory change hands.
class Room {
 public:
  Room(uint32_t ranks, Nanos timeout, const Clock* clock)
      : timeout_(timeout), clock_(clock), attendance_(ranks) {
    for (uint32_t r = 0; r < ranks; ++r) seats_.emplace_back(Rank(r), ranks);
  }

  void Enter(Rank rank, Member* member) { seat(rank).member = member; }  // before all else
  void Enqueue(Rank rank, CommOp* op);
  void Break(const absl::Status& why);
  // The rank's thread: returns when Dismiss was called and nothing is pending.
  void Work(Rank rank);
  void Dismiss(Rank rank);
  // The thread is gone.
  void Leave(Rank rank);

 private:
  // Of a rank's first operation in line.
  enum class Stage : uint8_t {
    kNone,    // there is none
    kFence,   // its fence is open: the thread asks it
    kWaits,   // it has come, others have not
    kPart,    // it runs: the thread is to do this rank's part of a phase
    kOthers,  // it runs: the others do theirs
    kEnds,    // its end is being told: the seat is left alone
  };
  struct Seat {
    Seat(Rank r, uint32_t ranks) : rank(r), part(ranks) {}
    const Rank rank;
    Member* member = nullptr;
    IntrusiveList<CommOp> queue;  // behind the first
    CommOp* first = nullptr;
    Stage stage = Stage::kNone;
    bool well = false;       // how it ends
    bool dismissed = false;  // the thread is to go
    TimePoint wakes_at{0};   // the thread, by itself; 0 while it is awake
    std::condition_variable changed;
    Party party{};  // of what runs, as the rest; those of a party are told by its first rank
    int phase = 0;
    uint32_t parts_left = 0;
    LocalPart part;

   private:
    friend class IntrusiveList<Seat>;
    Seat* next_ = nullptr;
  };
  using SeatList = IntrusiveList<Seat>;  // those whose first operation's end is to be told

  Seat& seat(Rank rank) { return seats_[rank.value()]; }
  Deadline DeadlineOf(const Seat& seat) const {
    const TimePoint started = seat.first->started;
    return timeout_ > kForever - started ? kForever : started + timeout_;
  }

  // All with the mutex held; they add to `ends`, which the caller then passes to Tell.
  void TakeNext(Seat* seat, SeatList* ends);
  void Come(Seat* seat, SeatList* ends);
  void Begin(const Party& party, SeatList* ends);
  void BeginPhase(const Party& party, int phase);
  void DoPart(std::unique_lock<std::mutex>& lock, Seat* seat, SeatList* ends);
  void BreakGroup(const absl::Status& why, SeatList* ends);
  void End(Seat* seat, bool well, SeatList* ends);
  void Sleep(std::unique_lock<std::mutex>& lock, Seat* seat);

  // Tells, without the mutex, and lets those seats go on with what is next, until nothing more
  // ends.
  void Tell(std::unique_lock<std::mutex>& lock, SeatList ends);

  const Nanos timeout_;
  const Clock* const clock_;
  std::mutex mutex_;
  Attendance attendance_;   // this and below guarded by mutex_; running operations' entries are
                            // read without it
  std::deque<Seat> seats_;  // by rank
  absl::Status broken_;     // once it is set, it stays
};

void Room::Enqueue(Rank rank, CommOp* op) {
  std::unique_lock lock(mutex_);
  seat(rank).queue.Push(op);
  SeatList ends;
  if (seat(rank).stage == Stage::kNone) TakeNext(&seat(rank), &ends);
  Tell(lock, std::move(ends));
}

void Room::Break(const absl::Status& why) {
  std::unique_lock lock(mutex_);
  SeatList ends;
  BreakGroup(why, &ends);
  Tell(lock, std::move(ends));
}

void Room::Dismiss(Rank rank) {
  const std::lock_guard lock(mutex_);
  seat(rank).dismissed = true;
  seat(rank).changed.notify_one();
}

void Room::Leave(Rank rank) {
  std::unique_lock lock(mutex_);
  seat(rank).member = nullptr;
  SeatList ends;
  BreakGroup(attendance_.Leave(rank), &ends);
  Tell(lock, std::move(ends));
}

void Room::Work(Rank rank) {
  std::unique_lock lock(mutex_);
  Seat& seat = this->seat(rank);
  while (!seat.dismissed || seat.stage != Stage::kNone) {
    SeatList ends;
    if (seat.stage == Stage::kPart) {
      DoPart(lock, &seat, &ends);
    } else if (seat.stage == Stage::kFence && seat.first->after->Complete()) {
      Come(&seat, &ends);
    } else if (seat.stage == Stage::kWaits && clock_->Now() >= DeadlineOf(seat)) {
      BreakGroup(absl::DeadlineExceededError(attendance_.WaitsFor(rank) + ", which is too long"),
                 &ends);
    } else {
      Sleep(lock, &seat);
    }
    Tell(lock, std::move(ends));
  }
}

void Room::Sleep(std::unique_lock<std::mutex>& lock, Seat* seat) {
  const TimePoint now = clock_->Now();
  seat->wakes_at = seat->stage == Stage::kFence   ? now + kFencePoll
                   : seat->stage == Stage::kWaits ? DeadlineOf(*seat)
                                                  : kForever;
  if (seat->wakes_at == kForever) {
    seat->changed.wait(lock);
  } else {
    seat->changed.wait_for(lock, std::min(seat->wakes_at - now, kLongestWait));
  }
  seat->wakes_at = TimePoint(0);
}

void Room::TakeNext(Seat* seat, SeatList* ends) {
  seat->first = nullptr;
  seat->stage = Stage::kNone;
  if (seat->queue.empty()) {
    if (seat->dismissed) seat->changed.notify_one();
    return;
  }
  seat->first = seat->queue.Pop();
  if (!broken_.ok()) return End(seat, false, ends);
  if (seat->first->after == nullptr || seat->first->after->Complete()) return Come(seat, ends);
  seat->stage = Stage::kFence;
  seat->changed.notify_one();
}

void Room::Come(Seat* seat, SeatList* ends) {
  seat->stage = Stage::kWaits;
  seat->first->started = clock_->Now();
  const absl::StatusOr<bool> begins = attendance_.Come(seat->rank, seat->first);
  if (!begins.ok()) return BreakGroup(begins.status(), ends);
  if (*begins) return Begin(attendance_.PartyOf(seat->rank), ends);
  if (seat->wakes_at > DeadlineOf(*seat)) seat->changed.notify_one();
}

void Room::Begin(const Party& party, SeatList* ends) {
  Bytes moved;
  party.ForEach([&](Rank rank) { moved += attendance_.op(rank)->sizes().receive; });
  if (moved > kAtOnce) return BeginPhase(party, 0);
  const int phases = LocalPart::phases(seat(Rank(party.first)).first->kind);
  for (int phase = 0; phase < phases; ++phase)
    party.ForEach([&](Rank rank) { seat(rank).part.Do(rank, attendance_.ops(), phase); });
  party.ForEach([&](Rank rank) { End(&seat(rank), true, ends); });
}

void Room::BeginPhase(const Party& party, int phase) {
  Seat& told = seat(Rank(party.first));
  told.phase = phase;
  told.parts_left = 0;
  party.ForEach([&](Rank rank) {
    Seat& seat = this->seat(rank);
    seat.party = party;
    const bool has_part = seat.first->kind != CommKind::kSend;
    seat.stage = has_part ? Stage::kPart : Stage::kOthers;
    if (!has_part) return;
    ++told.parts_left;
    seat.changed.notify_one();
  });
}

void Room::DoPart(std::unique_lock<std::mutex>& lock, Seat* seat, SeatList* ends) {
  const Party party = seat->party;
  Seat& told = this->seat(Rank(party.first));
  const int phase = told.phase;
  seat->stage = Stage::kOthers;
  lock.unlock();
  seat->part.Do(seat->rank, attendance_.ops(), phase);
  lock.lock();
  if (--told.parts_left > 0) return;
  if (phase + 1 < LocalPart::phases(seat->first->kind)) return BeginPhase(party, phase + 1);
  party.ForEach([&](Rank rank) { End(&this->seat(rank), true, ends); });
}

void Room::BreakGroup(const absl::Status& why, SeatList* ends) {
  if (why.ok() || !broken_.ok()) return;
  broken_ = why;
  for (Seat& seat : seats_) {
    if (seat.member != nullptr) seat.member->OnBroken(why);
    if (seat.stage == Stage::kFence || seat.stage == Stage::kWaits) End(&seat, false, ends);
  }
}

void Room::End(Seat* seat, bool well, SeatList* ends) {
  attendance_.Go(seat->rank);
  seat->stage = Stage::kEnds;
  seat->well = well;
  ends->Push(seat);
}

void Room::Tell(std::unique_lock<std::mutex>& lock, SeatList ends) {
  while (!ends.empty()) {
    lock.unlock();
    SeatList told;
    while (!ends.empty()) {
      Seat* const seat = ends.Pop();
      seat->member->EndOp(seat->first, seat->well ? absl::OkStatus() : broken_);
      told.Push(seat);
    }
    lock.lock();
    while (!told.empty()) TakeNext(told.Pop(), &ends);
  }
}

class InProcess final : public Communicator, private Member {
 public:
  InProcess(std::shared_ptr<Room> room, Rank rank, uint32_t ranks, const CommOptions& options,
            const Clock* clock)
      : Communicator(rank, ranks, options, clock), room_(std::move(room)) {
    room_->Enter(rank, this);
  }
  ~InProcess() override { (void)Close(); }

  absl::Status StartThread() {
    try {
      thread_ = std::thread([this] {
        pthread_setname_np(pthread_self(), "sluice-comm");
        room_->Work(rank());
      });
    } catch (const std::system_error& e) {
      return absl::ResourceExhaustedError(
          fmt::format("the thread of rank {} can't be started: {}", rank().value(), e.what()));
    }
    return absl::OkStatus();
  }

  std::string description() const override {
    return fmt::format("{} ranks in one process: threads, shared memory", ranks());
  }

 private:
  void Start(CommOp* op) override { room_->Enqueue(rank(), op); }
  void Interrupt(const absl::Status& why) override {
    room_->Break(absl::UnavailableError(
        fmt::format("rank {} was aborted: {}", rank().value(), Message(why))));
  }
  void Leave() override {
    room_->Dismiss(rank());
    if (thread_.joinable()) thread_.join();
    room_->Leave(rank());
  }
  void OnBroken(const absl::Status& why) override { Break(why); }
  void EndOp(CommOp* op, const absl::Status& status) override {
    End(op, status.ok() ? status : this->status());  // what came first
  }

  const std::shared_ptr<Room> room_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> MakeInProcessRanks(
    uint32_t ranks, const CommOptions& options, const Clock* clock) {
  SLUICE_CHECK(ranks >= 1 && ranks <= kRanksMax);
  const auto room = std::make_shared<Room>(ranks, options.timeout, clock);
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (uint32_t r = 0; r < ranks; ++r) {
    auto communicator = std::make_unique<InProcess>(room, Rank(r), ranks, options, clock);
    SLUICE_RETURN_IF_ERROR(communicator->StartThread());
    communicators.push_back(std::move(communicator));
  }
  return communicators;
}

}  // namespace sluice
