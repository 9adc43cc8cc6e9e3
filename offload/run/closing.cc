#include "offload/run/closing.h"

#include <utility>

#include "fmt/format.h"

namespace sluice {

bool Closing::handed_over() const {
  const std::lock_guard lock(mutex_);
  return handed_over_;
}

void Closing::Enter(std::string_view part) {
  const std::lock_guard lock(mutex_);
  part_ = part;
}

void Closing::GiveUp(std::string hanging) {
  const std::lock_guard lock(mutex_);
  given_up_ = true;
  hanging_ = std::move(hanging);
  changed_.notify_all();
}

void Closing::Keep(std::string what) {
  const std::lock_guard lock(mutex_);
  kept_ = std::move(what);
}

void Closing::Finish() {
  const std::lock_guard lock(mutex_);
  finished_ = true;
  changed_.notify_all();
}

absl::Status Closing::Wait(Nanos at_most) const {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, at_most, [this] { return finished_ || given_up_; });
  if (finished_ && kept_.empty()) return absl::OkStatus();
  const std::string waits_for =
      finished_        ? kept_
      : given_up_      ? hanging_
      : !part_.empty() ? fmt::format("the end of {}", part_)
                       : "a call that the control thread made to a drive or the device";
  return absl::UnavailableError(fmt::format(
      "the runtime was abandoned, since this has not ended: {}. What that may still use (memory, "
      "files, threads) is kept until it ends or the process does; leave alone what was handed over "
      "with tickets that are not done",
      waits_for));
}

}  // namespace sluice
