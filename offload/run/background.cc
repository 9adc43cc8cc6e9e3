#include "offload/run/background.h"

#include <pthread.h>

#include <condition_variable>
#include <list>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "fmt/format.h"

namespace sluice {

struct Background::Piece final : Event {
  Work work;
  Then then;
  absl::Status status;
  Shared* shared;

  void Handle() override;
};

struct Background::Shared {
  std::mutex mutex;
  std::condition_variable changed;
  Inbox* inbox;                               // guarded by mutex; null: nobody listens
  bool running = false;                       // guarded by mutex
  std::list<std::unique_ptr<Piece>> waiting;  // guarded by mutex
  std::list<std::unique_ptr<Piece>> done;     // guarded by mutex; not handled yet, the first first
};

void Background::Piece::Handle() {
  std::unique_ptr<Piece> self;
  {
    const std::lock_guard lock(shared->mutex);
    self = std::move(shared->done.front());
    shared->done.pop_front();
  }
  work = nullptr;  // what it holds is free before others begin
  then(status);
}

Background::Background(Inbox* inbox, bool threaded)
    : threaded_(threaded), shared_(std::make_shared<Shared>()) {
  shared_->inbox = inbox;
}

Background::~Background() { End(); }

void Background::End() {
  std::list<std::unique_ptr<Piece>> dropped;  // which takes no memory, unlike a deque
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->inbox = nullptr;
    dropped.swap(shared_->waiting);
  }
  shared_->changed.notify_all();
}

void Background::Stop() {
  End();
  std::unique_lock lock(shared_->mutex);
  shared_->changed.wait(lock, [this] { return !shared_->running; });
}

size_t Background::pending() const {
  const std::lock_guard lock(shared_->mutex);
  return shared_->waiting.size() + (shared_->running ? 1 : 0);
}

void Background::Do(Work work, Then then) {
  auto piece = std::make_unique<Piece>();
  piece->work = std::move(work);
  piece->then = std::move(then);
  piece->shared = shared_.get();
  if (threaded_ && !started_) {
    try {
      std::thread([shared = shared_] { Loop(shared); }).detach();
      started_ = true;
    } catch (const std::system_error& e) {
      piece->status = absl::ResourceExhaustedError(
          fmt::format("a thread for files can't be started: {}", e.what()));
    }
  }
  if (piece->status.ok() && threaded_) {
    {
      const std::lock_guard lock(shared_->mutex);
      shared_->waiting.push_back(std::move(piece));
    }
    shared_->changed.notify_one();
    return;
  }
  if (piece->status.ok()) piece->status = piece->work();
  const std::lock_guard lock(shared_->mutex);
  if (shared_->inbox == nullptr) return;
  shared_->done.push_back(std::move(piece));
  shared_->inbox->Post(shared_->done.back().get());
}

void Background::Loop(const std::shared_ptr<Shared>& shared) {
  pthread_setname_np(pthread_self(), "sluice-files");
  std::unique_lock lock(shared->mutex);
  for (;;) {
    shared->changed.wait(lock,
                         [&] { return shared->inbox == nullptr || !shared->waiting.empty(); });
    if (shared->waiting.empty()) return;
    std::unique_ptr<Piece> piece = std::move(shared->waiting.front());
    shared->waiting.pop_front();
    shared->running = true;
    lock.unlock();
    piece->status = piece->work();
    lock.lock();
    shared->running = false;
    if (shared->inbox == nullptr) {
      lock.unlock();
      shared->changed.notify_all();
      return;
    }
    shared->done.push_back(std::move(piece));
    shared->inbox->Post(shared->done.back().get());
  }
}

}  // namespace sluice
