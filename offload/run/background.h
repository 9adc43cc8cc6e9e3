// offload/run/background.h
//
// Work that blocks, such as that on a checkpoint's files, off the control thread: one piece after
// another, on a thread that is started by the first. Without threads (simulation) it is done at
// once, and its end is heard of as any other.
//
// Threads: the control thread, but for the work itself.

#ifndef SLUICE_OFFLOAD_RUN_BACKGROUND_H_
#define SLUICE_OFFLOAD_RUN_BACKGROUND_H_

#include <cstddef>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "core/event.h"

namespace sluice {

class Background {
 public:
  using Work = std::function<absl::Status()>;
  using Then = std::function<void(const absl::Status&)>;

  // `inbox` is not owned.
  Background(Inbox* inbox, bool threaded);
  // When the inbox is handled no more. What has not begun never does; what has may go on alone for
  // as long as it takes: all that it uses must be its own.
  ~Background();

  // `then` is called on the control thread, in the order of the work; with ResourceExhausted if no
  // thread can be had.
  void Do(Work work, Then then);
  // How much has not ended.
  size_t pending() const;
  // What has not begun never does; returns when what has begun has ended. Nothing is done after it.
  void Stop();

 private:
  struct Piece;
  struct Shared;

  void End();
  static void Loop(const std::shared_ptr<Shared>& shared);

  const bool threaded_;
  const std::shared_ptr<Shared> shared_;
  bool started_ = false;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_BACKGROUND_H_
