#include "comm/nccl.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "comm/nccl_calls.h"
#include "comm/nccl_handle.h"
#include "comm/op_rules.h"
#include "comm/rendezvous.h"
#include "core/config.h"
#include "core/status.h"
#include "core/work_queue.h"
#include "fmt/format.h"

namespace sluice {

namespace {

constexpr Nanos kFencePoll = std::chrono::microseconds(100);
// How often the stream is asked how far it has come: nobody is told.
constexpr Nanos kPollMin = std::chrono::microseconds(20);
constexpr Nanos kPollMax = std::chrono::microseconds(200);
// How long what is under way may stay so when NCCL was aborted.
constexpr Nanos kGiveUp = std::chrono::seconds(10);

Deadline After(TimePoint since, Nanos time) {
  return time > kForever - since ? kForever : since + time;
}

class Nccl final : public Communicator {
 public:
  Nccl(std::shared_ptr<const NcclLibrary> library, std::unique_ptr<Communicator> control,
       std::unique_ptr<SideStream> stream, const CommOptions& options, const Clock* clock)
      : Communicator(control->rank(), control->ranks(), options, clock),
        handle_(std::move(library)),
        meeting_(std::move(control)),
        stream_(std::move(stream)),
        calls_(&handle_, stream_.get(), rank(), ranks()),
        places_(options.in_flight) {}
  ~Nccl() override { (void)Close(); }

  // Makes NCCL's communicator, with all others.
  absl::Status Join() {
    absl::Status status = TryToJoin();
    if (status.ok()) return status;
    handle_.Abort();
    meeting_.control().Abort(status);
    return Annotate(status, fmt::format("rank {}", rank().value()));
  }

  absl::Status StartThreads() {
    try {
      meets_ = std::thread([this] { MeetAll(); });
      drives_ = std::thread([this] { DriveAll(); });
    } catch (const std::system_error& e) {
      return absl::ResourceExhaustedError(
          fmt::format("the threads of rank {} can't be started: {}", rank().value(), e.what()));
    }
    return absl::OkStatus();
  }

  std::string description() const override {
    return fmt::format("{} ranks over {} on {}; they meet over {}", ranks(),
                       handle_.library().description(), stream_->description(),
                       meeting_.control().description());
  }

 private:
  // Of an operation that its ranks may have come to.
  struct Place {
    CommOp* op = nullptr;
    uint32_t layout = 0;
    absl::Status status;  // of meeting, then of launching
    uint64_t mark = 0;    // of the stream, behind it; 0: nothing of it was put there
  };
  Place& PlaceOf(uint64_t number) { return places_[number % places_.size()]; }

  NcclPatience PatienceUntil(Deadline deadline) const {
    return {&clock(), deadline, &broken_, &meeting_.control()};
  }

  absl::Status TryToJoin() {
    const auto staging = static_cast<uint64_t>(stream_->staging().size());
    SLUICE_CHECK(staging >= NcclCalls::StagingMin(ranks()).size());
    SLUICE_RETURN_IF_ERROR(stream_->Bind());
    const auto version = static_cast<uint64_t>(handle_.library().version());
    SLUICE_RETURN_IF_ERROR(Same("version of NCCL", version));
    SLUICE_RETURN_IF_ERROR(Same("staging", staging));
    NcclUniqueId id{};
    absl::Status made;
    if (rank() == Rank(0))
      made = handle_.library().ToStatus(handle_.api().GetUniqueId(&id), "ncclGetUniqueId", nullptr);
    SLUICE_RETURN_IF_ERROR(made);  // the others hear of it, in what they wait for
    SLUICE_RETURN_IF_ERROR(meeting_.TakeFirstRanks(std::as_writable_bytes(std::span(id.internal))));
    SLUICE_RETURN_IF_ERROR(
        handle_.Init(id, rank(), ranks(), PatienceUntil(After(clock().Now(), options().timeout))));
    return meeting_.Gather(0).status();  // all have it
  }

  absl::Status Same(const char* what, uint64_t mine) {
    SLUICE_ASSIGN_OR_RETURN(const std::vector<uint64_t> all, meeting_.Gather(mine));
    for (size_t r = 0; r < all.size(); ++r) {
      if (all[r] == all[0]) continue;
      return absl::FailedPreconditionError(
          fmt::format("rank 0 has another {} than rank {}: {} and {}", what, r, all[0], all[r]));
    }
    return absl::OkStatus();
  }

  void Start(CommOp* op) override { to_meet_.Push(op); }

  void MeetAll() {
    pthread_setname_np(pthread_self(), "sluice-meet");
    while (CommOp* const op = to_meet_.Pop()) {
      {
        std::unique_lock lock(mutex_);
        freed_.wait(lock, [this] { return met_ - ended_ < places_.size(); });
      }
      while (op->after != nullptr && status().ok() && !op->after->Complete())
        std::this_thread::sleep_for(kFencePoll);
      op->started = clock().Now();
      Place& place = PlaceOf(met_);
      place = {.op = op, .status = status()};
      if (place.status.ok()) place.status = Meet(&place);
      {
        const std::lock_guard lock(mutex_);
        ++met_;
      }
      changed_.notify_one();
    }
  }

  absl::Status Meet(Place* place) {
    const absl::StatusOr<uint32_t> layout =
        meeting_.Meet(*place->op, LayoutOf(*place->op, ranks()));
    if (!layout.ok()) return Fail(*place->op, layout.status());
    place->layout = *layout;
    return absl::OkStatus();
  }

  void DriveAll() {
    pthread_setname_np(pthread_self(), "sluice-nccl");
    const absl::Status bound = stream_->Bind();
    if (!bound.ok()) BreakAll(Annotate(bound, fmt::format("rank {}", rank().value())));
    Nanos poll = kPollMin;
    std::unique_lock lock(mutex_);
    while (true) {
      if (driven_ < met_) {
        Place& place = PlaceOf(driven_);
        lock.unlock();
        Launch(&place);
        lock.lock();
        ++driven_;
      } else if (ended_ < driven_) {
        Place& place = PlaceOf(ended_);
        lock.unlock();
        const bool ended = Look(&place);
        lock.lock();
        if (ended) {
          ++ended_;
          freed_.notify_one();
          poll = kPollMin;
        } else {
          changed_.wait_for(lock, poll);
          poll = std::min(poll * 2, kPollMax);
        }
      } else if (stopping_) {
        break;
      } else {
        changed_.wait(lock);
      }
    }
    lock.unlock();
    Finish();
  }

  void Launch(Place* place) {
    if (!place->status.ok()) return;
    place->status = status();
    if (!place->status.ok()) return;
    if (handle_.comm() == nullptr) {  // broken, and being told
      place->status = Fail(*place->op, absl::AbortedError("it was aborted"));
      return;
    }
    absl::Status launched = calls_.Launch(*place->op, place->layout,
                                          PatienceUntil(After(clock().Now(), options().timeout)));
    // What failed may have put something there too: then NCCL goes first, for it may be what a
    // stream waits for.
    if (!launched.ok()) {
      place->status = Fail(*place->op, launched);
      AbortNccl();
    }
    absl::StatusOr<uint64_t> mark = stream_->Mark();
    if (mark.ok()) {
      place->mark = *mark;
    } else if (launched.ok()) {
      place->status = Fail(*place->op, mark.status());
      AbortNccl();
    }
  }

  // Whether the first operation in line has ended; then it is told.
  bool Look(Place* place) {
    if (place->mark == 0) return Tell(place, place->status);
    if (!aborted_) {
      if (const absl::Status error = handle_.AsyncError(); !error.ok()) {
        place->status = Fail(*place->op, error);
        AbortNccl();
      }
    }
    const absl::StatusOr<bool> passed = stream_->Passed(place->mark);
    if (!passed.ok()) {
      place->status = Fail(*place->op, passed.status());
      return Tell(place, place->status);
    }
    // What NCCL has aborted is not well, though the stream has passed it.
    if (*passed && aborted_ && place->status.ok()) place->status = status();
    if (*passed) return Tell(place, place->status);
    const TimePoint now = clock().Now();
    const TimePoint since = std::max(place->op->started, last_ended_);
    if (!broken_ && now >= After(since, options().timeout)) BreakAll(TooLate(*place->op));
    if (const absl::Status control = meeting_.control().status(); !broken_ && !control.ok())
      Fail(*place->op, control).IgnoreError();
    if (broken_ && !aborted_) AbortNccl();
    if (!aborted_ || now < give_up_) return false;
    place->op->memory_lost = lost_ = true;
    const absl::Status why = status();
    return Tell(place, absl::Status(why.code(), fmt::format("{}; the stream does not run past {}, "
                                                            "whose memory may still be in use",
                                                            Message(why), OpName(*place->op))));
  }

  bool Tell(Place* place, const absl::Status& status) {
    last_ended_ = clock().Now();
    End(std::exchange(place->op, nullptr), status);
    return true;
  }

  void AbortNccl() {
    if (aborted_) return;
    aborted_ = true;
    handle_.Abort();
    give_up_ = After(clock().Now(), kGiveUp);
  }

  // All have ended.
  void Finish() {
    if (lost_) {  // the stream may run at any time
      static_cast<void>(stream_.release());
    } else if (broken_) {
      AbortNccl();
    } else if (const absl::Status finished =
                   handle_.Finish(PatienceUntil(After(clock().Now(), options().close_timeout)));
               !finished.ok()) {
      aborted_ = true;
    }
  }

  absl::Status TooLate(const CommOp& op) const {
    std::string others;
    for (uint32_t r = 0; r < ranks(); ++r) {
      if (Needs(op, rank(), Rank(r))) others += fmt::format("{}{}", others.empty() ? "" : ", ", r);
    }
    return absl::DeadlineExceededError(
        fmt::format("rank {} waits in {} for one of the ranks {}, which is too long",
                    rank().value(), OpName(op), others));
  }

  // Breaks the group, and returns what broke it first.
  absl::Status Fail(const CommOp& op, const absl::Status& why) {
    BreakAll(Annotate(why, fmt::format("rank {}: {}", rank().value(), OpName(op))));
    return status();
  }
  void BreakAll(const absl::Status& why) {
    if (Break(why)) Interrupt(why);
  }
  // On any thread.
  void Interrupt(const absl::Status& why) override {
    broken_ = true;
    meeting_.control().Abort(why);
    { const std::lock_guard lock(mutex_); }  // who has looked before waits by now
    changed_.notify_one();
  }

  void Leave() override {
    to_meet_.Stop();
    if (meets_.joinable()) meets_.join();
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_one();
    if (drives_.joinable()) drives_.join();
    (void)meeting_.control().Close();
  }

  NcclHandle handle_;   // this and below, until the threads: of the one that drives
  Rendezvous meeting_;  // but this is of the one that meets
  std::unique_ptr<SideStream> stream_;
  NcclCalls calls_;
  bool aborted_ = false;
  bool lost_ = false;
  Deadline give_up_ = kForever;
  TimePoint last_ended_{0};
  std::atomic<bool> broken_{false};  // and not only closed
  WorkQueue<CommOp> to_meet_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::condition_variable freed_;
  std::vector<Place> places_;  // by number, from the start again; of who counts it next
  uint64_t met_ = 0;           // how many; this and below guarded by mutex_
  uint64_t driven_ = 0;
  uint64_t ended_ = 0;
  bool stopping_ = false;
  std::thread meets_;
  std::thread drives_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(
    std::shared_ptr<const NcclLibrary> library, std::unique_ptr<Communicator> control,
    std::unique_ptr<SideStream> stream, const CommOptions& options, const Clock* clock) {
  SLUICE_CHECK(options.in_flight > 0);
  auto communicator = std::make_unique<Nccl>(std::move(library), std::move(control),
                                             std::move(stream), options, clock);
  SLUICE_RETURN_IF_ERROR(communicator->Join());
  SLUICE_RETURN_IF_ERROR(communicator->StartThreads());
  return communicator;
}

}  // namespace sluice
