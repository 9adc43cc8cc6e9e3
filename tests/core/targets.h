// tests/core/targets.h
//
// Runs a test's body on every vector target that this CPU has and the library was built for.

#ifndef SLUICE_TESTS_CORE_TARGETS_H_
#define SLUICE_TESTS_CORE_TARGETS_H_

#include <gtest/gtest.h>

#include <cstdint>

#include "hwy/targets.h"

namespace sluice {

template <typename Body>
void OnEveryTarget(const Body& body) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
}

}  // namespace sluice

#endif  // SLUICE_TESTS_CORE_TARGETS_H_
