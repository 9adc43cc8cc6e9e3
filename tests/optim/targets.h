// tests/optim/targets.h
//
// Runs a test's body on every vector target that this CPU has and the library was built for.

#ifndef SLUICE_TESTS_OPTIM_TARGETS_H_
#define SLUICE_TESTS_OPTIM_TARGETS_H_

#include <gtest/gtest.h>

#include <cstdint>

#include "hwy/targets.h"
#include "optim/adamw.h"

namespace sluice {

template <typename Body>
void ForEachTarget(const Body& body) {
  for (int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    EXPECT_STREQ(VectorTarget(), hwy::TargetName(target));
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
}

}  // namespace sluice

#endif  // SLUICE_TESTS_OPTIM_TARGETS_H_
