// offload/run/topic.h
//
// What a rank may say to the others (agreement.h).

#ifndef SLUICE_OFFLOAD_RUN_TOPIC_H_
#define SLUICE_OFFLOAD_RUN_TOPIC_H_

#include <cstdint>

namespace sluice {

enum class Topic : uint32_t {
  kModel,      // a number, or a hash, of what must be the same on all ranks: one after another
  kGradients,  // of a unit: all that this rank has of it in this window
  kNothing,    // of a unit: this rank will have no gradients of it in this window
  kWindowEnd,  // no more gradients in this window
  kStep,       // the same, and a step is next; these three are meetings (grad_exchange.h)
  kClear,      // likewise: gradients are to be forgotten; 0: all, t + 1: tensor t's
  kGradient,   // likewise: a gradient is to be read or written; 2 t, and 1 if it was given here
  kParams,     // of a unit: this rank's part was renewed
  kAccess,     // this rank reads or writes a value next, and wants no unit
  kValue,      // of a tensor: this rank's part was read, or written; 2 t, and 1 if written
  kFetch,      // of a unit: this rank has room for it
  kUrgent,     // of a unit: it can't wait for the others to have room too
  kUnwanted,   // of a unit: it has no room for it any more
  kVote,    // 1: this rank has done its part of what all must, or none; 0: it could not; beside 31
            // bits of a hash of what
  kGoesOn,  // this rank is busy with that still
};

struct Said {
  Topic topic;
  uint32_t index;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_TOPIC_H_
