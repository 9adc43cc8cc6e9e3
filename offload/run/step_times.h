// offload/run/step_times.h
//
// What steps took, against their floor, and what was waited for meanwhile: what a runtime knows of
// its own speed without anybody's probe. A step is the time from one call of step to the next, with
// whatever the caller did in between. Floors come from rates that somebody has measured; a step in
// which rates were set is left out, since they were perhaps measured in it. The others are measured
// against the lesser of the floors before and after them: whatever else the machine does while
// rates are measured makes a floor longer than it is.
//
// Threads: any; Stepped, Active and WaitsFor belong to the control thread. Allocates at
// construction only, but for figures().

#ifndef SLUICE_OFFLOAD_RUN_STEP_TIMES_H_
#define SLUICE_OFFLOAD_RUN_STEP_TIMES_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "core/clock.h"
#include "offload/plan/floor.h"

namespace sluice {

// What would end the wait of an acquisition, a step or a drain.
enum class WaitedFor : uint8_t {
  kFetch,      // a unit that comes, or makes room
  kUpdate,     // its arithmetic, and what brings parameters home
  kGradients,  // their copies and sums
  kRanks,      // others, who have not come, or what they send
  kDrive       // of any of these: nothing but reads and writes is left
};
inline constexpr size_t kWaits = 5;
constexpr const char* Name(WaitedFor wait) {
  constexpr const char* kNames[] = {"fetch", "update", "gradients", "ranks", "drive"};
  return kNames[static_cast<size_t>(wait)];
}

class StepTimes {
 public:
  static constexpr size_t kKept = 1024;  // of which percentiles are

  struct Step {
    Nanos took{0};
    std::optional<double> floor_seconds;
  };
  struct Figures {
    int64_t count = 0;         // of steps
    std::vector<Step> latest;  // in order, at most kKept
    std::optional<HardwareRates> rates;
    FloorTerms floor;                    // if there are rates
    std::array<Nanos, kWaits> waited{};  // never for two things at a time
    Nanos in_all{0};                     // from the first acquisition or step to the last
  };

  // `floor` is what a step takes at least, by `rates`.
  void SetRates(const HardwareRates& rates, const FloorTerms& floor);
  void Reset(TimePoint now);  // all but the rates
  Figures figures() const;

  void Stepped(TimePoint called);
  void Active(TimePoint at);  // an acquisition or a step then
  // From now on the caller waits for `what`; nothing: it does not wait.
  void WaitsFor(std::optional<WaitedFor> what, TimePoint now);
  bool waiting() const { return waits_for_.has_value(); }

 private:
  void ActiveLocked(TimePoint at);

  std::optional<WaitedFor> waits_for_;  // the control thread's

  mutable std::mutex mutex_;                                               // guards the rest
  const std::unique_ptr<Step[]> steps_ = std::make_unique<Step[]>(kKept);  // step n at n % kKept
  int64_t count_ = 0;
  int64_t count_at_rates_ = 0;
  std::optional<TimePoint> called_;  // the last step
  bool disturbed_ = false;           // since then
  std::optional<HardwareRates> rates_;
  FloorTerms floor_;
  std::array<Nanos, kWaits> waited_{};
  TimePoint since_{0};  // of the present wait, what is not in waited_
  std::optional<TimePoint> first_;
  TimePoint last_{0};
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_STEP_TIMES_H_
