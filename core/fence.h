// core/fence.h
//
// A Fence is a point in a stream, of the caller's or of the device's: it is complete when
// everything that was on that stream before has run. Devices make fences (Device::RecordFence,
// RecordEnd) and let streams wait for them (OrderAfter, OrderCallerAfter); anyone may ask whether
// one is complete. A fence that was never recorded is complete.
//
// Who waits for a fence waits for its point as it is then: the fence may go as soon as the call has
// returned, and its place in the pool may be used for another.
//
// Threads: one at a time; different fences on any. Moving and destroying never block. A fence may
// outlive its device.

#ifndef SLUICE_CORE_FENCE_H_
#define SLUICE_CORE_FENCE_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/container/inlined_vector.h"

namespace sluice {

// A stream of the caller's, as its framework names it: a cudaStream_t on CUDA (null is the legacy
// default stream). The host device has none and ignores it.
struct CallerStream {
  void* handle = nullptr;
  friend bool operator==(CallerStream, CallerStream) = default;
};

// Where a device keeps the points that its fences stand for. Thread-safe.
class FencePool {
 public:
  virtual ~FencePool() = default;
  virtual bool Complete(uint32_t point) = 0;
  virtual void Return(uint32_t point) = 0;  // the fence is gone
};

class Fence {
 public:
  Fence() = default;
  Fence(std::shared_ptr<FencePool> pool, uint32_t point) : pool_(std::move(pool)), point_(point) {}
  Fence(Fence&& other) noexcept : pool_(std::move(other.pool_)), point_(other.point_) {}
  Fence& operator=(Fence&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(point_, other.point_);
    return *this;
  }
  ~Fence() {
    if (pool_ != nullptr) pool_->Return(point_);
  }

  bool recorded() const { return pool_ != nullptr; }
  bool Complete() const { return pool_ == nullptr || pool_->Complete(point_); }
  uint32_t point() const { return point_; }  // for its device

 private:
  std::shared_ptr<FencePool> pool_;
  uint32_t point_ = 0;
};

// Of one stream, as a rule; more take memory.
using Fences = absl::InlinedVector<Fence, 2>;

}  // namespace sluice

#endif  // SLUICE_CORE_FENCE_H_
