// tests/offload/caller.h
//
// Where the trainer's model computes: in the calling thread, or on a stream of the caller's.

#ifndef SLUICE_TESTS_OFFLOAD_CALLER_H_
#define SLUICE_TESTS_OFFLOAD_CALLER_H_

#include <cstddef>
#include <deque>
#include <functional>
#include <vector>

#include "core/device.h"

namespace sluice::testing {

// Where the trainer's model computes, and the stream it is ordered on. This one: in the calling
// thread, at once.
class Caller {
 public:
  using Function = std::function<void(const std::byte* params, std::byte* grad)>;

  virtual ~Caller() = default;
  virtual CallerStream stream() { return {}; }
  // Puts a layer's backward on the stream: `function` of the `param_bytes` at `params` in the
  // device's memory. Returns where its `grad_bytes` are once the stream got there; they stay until
  // Forget.
  virtual const std::byte* Compute(const std::byte* params, size_t param_bytes, size_t grad_bytes,
                                   Function function) {
    (void)param_bytes;
    grads_.emplace_back(grad_bytes);
    function(params, grads_.back().data());
    return grads_.back().data();
  }
  virtual void Forget() { grads_.clear(); }

 protected:
  std::deque<std::vector<std::byte>> grads_;
};

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_OFFLOAD_CALLER_H_
