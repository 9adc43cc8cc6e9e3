// tests/offload/sim_caller.h
//
// A caller of the trainer that computes on a simulated stream of its own, behind the calls it
// makes; and which seeds of a sweep do.

#ifndef SLUICE_TESTS_OFFLOAD_SIM_CALLER_H_
#define SLUICE_TESTS_OFFLOAD_SIM_CALLER_H_

#include <cstddef>
#include <cstdint>
#include <utility>

#include "core/sim_world.h"
#include "tests/offload/trainer.h"

namespace sluice::testing {

// Computes when the simulated stream gets there; until then gradients are garbage.
class SimCaller final : public Caller {
 public:
  CallerStream stream() override { return {&stream_}; }
  const std::byte* Compute(const std::byte* params, size_t, size_t grad_bytes,
                           Function function) override {
    grads_.emplace_back(grad_bytes, std::byte{0xEE});
    std::byte* grad = grads_.back().data();
    stream_.Add([function = std::move(function), params, grad, this] {
      function(params, grad);
      ++computed_;
    });
    return grad;
  }
  int computed() const { return computed_; }

 private:
  SimCallerStream stream_;
  int computed_ = 0;
};

// Two of three seeds compute on a stream, and are more or less ahead of it.
inline TrainerOptions Ahead(uint64_t seed, TrainerOptions options) {
  options.units_ahead = seed % 3 == 0 ? 0 : seed % 7;
  return options;
}
inline Caller* CallerOf(uint64_t seed, SimCaller* caller) {
  return seed % 3 == 0 ? nullptr : caller;
}

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_OFFLOAD_SIM_CALLER_H_
