// The end of a runtime: what was asked for is carried out, what has begun comes back, and what has
// nothing under way is given back, each for a bounded time.

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/runtime.h"

namespace sluice {

namespace {

constexpr Nanos kSettleTurn = std::chrono::milliseconds(2);  // nothing wakes who waits so

// Simulated runtimes that were abandoned: the world may still hand them completions. Here leak
// checkers find them.
void KeepAbandoned(OffloadRuntime* runtime) {
  static auto* const kept = new std::vector<OffloadRuntime*>;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  kept->push_back(runtime);
}

}  // namespace

OffloadRuntime::~OffloadRuntime() {
  if (!closing_->handed_over()) Stop();
  if (thread_.joinable()) thread_.join();
  TakeDown();
}

absl::Status OffloadRuntime::Close(std::unique_ptr<OffloadRuntime> runtime) {
  const std::shared_ptr<Closing> closing = runtime->closing_;
  const Nanos at_most = runtime->options_.close.all();
  if (runtime->seams_.threaded) {
    OffloadRuntime* const released = runtime.release();
    closing->HandOver([released] {
      released->thread_.detach();
      released->Stop();
    });
    return closing->Wait(at_most);
  }
  closing->HandOver([&runtime] { runtime->Stop(); });
  runtime->TakeDown();
  if (runtime->Pending().empty()) {
    closing->Finish();
  } else {
    KeepAbandoned(runtime.release());
  }
  return closing->Wait(Nanos(0));
}

// Tells the control thread to end, or is it.
void OffloadRuntime::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  if (engine_ != nullptr) engine_->Wake();
  if (!seams_.threaded && begun_) ControlLoop();
}

void OffloadRuntime::ControlLoop() {
  const auto stopping = [this] {
    const std::lock_guard lock(mutex_);
    return stopping_;
  };
  while (!stopping())
    RunOnce(seams_.clock->Now() +
            (residency_->waiting() || residency_->dying() ? kTurn : std::chrono::seconds(1)));
  const TimePoint begin = seams_.clock->Now();
  DrainUntil(begin + options_.close.drain);
  SettleUntil(begin + options_.close.drain + options_.close.settle);
}

void OffloadRuntime::DrainUntil(TimePoint deadline) {
  const auto called = [this] { return calls_.any() || !inbox_.empty(); };
  while ((called() || !Quiet()) && failure().ok() && seams_.clock->Now() < deadline)
    RunOnce(std::min(deadline, seams_.clock->Now() + kTurn));
}

// Nothing begins any more, but for what the parts of a chunk that run begin; and nobody hears of
// what ends.
void OffloadRuntime::SettleUntil(TimePoint deadline) {
  seams_.executor->Abandon();
  seams_.device->Abandon();
  std::vector<IoOp*> done(options_.io.in_flight_max);
  while (!Pending().empty() && seams_.clock->Now() < deadline)
    engine_->Poll(done, std::min(deadline, seams_.clock->Now() + kSettleTurn));
}

bool OffloadRuntime::TasksPending() const {
  return seams_.executor != nullptr && seams_.executor->pending() > 0;
}
bool OffloadRuntime::CopiesPending() const {
  return seams_.device != nullptr && seams_.device->pending() != StreamCounts{};
}
bool OffloadRuntime::TransfersPending() const {
  return engine_ != nullptr && engine_->in_flight() > 0;
}

std::string OffloadRuntime::Pending() const {
  std::string words;
  const auto add = [&words](size_t count, std::string_view what, std::string_view where = "") {
    if (count > 0) words += fmt::format("{}{} {}{}", words.empty() ? "" : ", ", count, what, where);
  };
  if (TasksPending()) add(seams_.executor->pending(), "tasks of the workers");
  if (CopiesPending()) {
    const StreamCounts counts = seams_.device->pending();
    constexpr std::array<std::string_view, kStreamCount> kNames = {
        "copies to the device",
        "copies from the device, which wait for a stream of the caller's",
        "computations of the device",
        "waits for a stream of the caller's",
        "copies to the device, which wait for a stream of the caller's",
        "copies of gradients, which wait for a stream of the caller's"};
    for (size_t s = 0; s < counts.size(); ++s) add(counts[s], kNames[s]);
  }
  if (checkpoints_ != nullptr) add(checkpoints_->pending(), "works on a checkpoint's files");
  if (!TransfersPending()) return words;
  const std::vector<BlockStore::UnderWay>& files = store_->under_way();
  for (size_t f = 0; f < files.size(); ++f) {
    const std::string where =
        fmt::format(" of swap file {}{}", f,
                    f < seams_.files.size() ? " in " + seams_.files[f].directory() : std::string());
    add(files[f].reads, "reads", where);
    add(files[f].writes, "writes", where);
  }
  return words;
}

// The framework that reaches the other ranks goes on with what it was told to abort: whatever it
// may read or write stays, for ever.
void OffloadRuntime::KeepLostMemory() {
  new std::shared_ptr<Arena>(hbm_);
  new Arena(std::move(memory_.pinned));
  (void)ranks_.release();
  closing_->Keep("operations among ranks, which the framework does not end");
}

// First what has nothing under way, so that what hangs keeps as little as can be. A part that was
// taken down already is so at once.
void OffloadRuntime::TakeDown() {
  struct Part {
    std::string_view name;
    bool hangs;
    void (*end)(OffloadRuntime*);
  };
  std::array parts{
      Part{"the workers", TasksPending(), [](OffloadRuntime* r) { r->seams_.executor.reset(); }},
      Part{"the device", CopiesPending(), [](OffloadRuntime* r) { r->seams_.device.reset(); }},
      Part{"the I/O engine", TransfersPending(),
           [](OffloadRuntime* r) {
             if (r->engine_ != nullptr && !r->engine_->Close().ok())
               r->metrics_.Get("close_errors")->Add();
             r->seams_.files.clear();
           }},
      Part{"a checkpoint's files", checkpoints_ != nullptr && checkpoints_->pending() > 0,
           [](OffloadRuntime* r) {
             if (r->checkpoints_ != nullptr) r->checkpoints_->Stop();
           }}};
  if (ranks_ != nullptr) {
    closing_->Enter("the other ranks");
    if (!ranks_->Close().ok()) metrics_.Get("close_errors")->Add();
    if (ranks_->memory_lost()) KeepLostMemory();
  }
  std::stable_partition(parts.begin(), parts.end(), [](const Part& part) { return !part.hangs; });
  for (const Part& part : parts) {
    if (seams_.executor == nullptr && seams_.device == nullptr && hbm_ != nullptr) {
      closing_->Enter("the device's memory");
      if (residency_ != nullptr) residency_->views()->End();
      hbm_.reset();
    }
    if (part.hangs) {
      closing_->GiveUp(Pending());
      if (!seams_.threaded && closing_->handed_over()) return;  // the world goes on without it
    }
    closing_->Enter(part.name);
    part.end(this);
  }
  closing_->Enter("pinned memory");
}

}  // namespace sluice
