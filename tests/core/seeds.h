// tests/core/seeds.h
//
// The seeds that a simulated test sweeps over: from 1 on, as many as the test finds enough. From
// the environment, for longer sweeps and to replay one: SLUICE_SIM_SEEDS, how many times as many,
// and SLUICE_SIM_FIRST_SEED, where they begin.

#ifndef SLUICE_TESTS_CORE_SEEDS_H_
#define SLUICE_TESTS_CORE_SEEDS_H_

#include <charconv>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/status.h"

namespace sluice {

// 1 where the environment doesn't say. Anything but a positive number is a failed check.
inline uint64_t SeedSetting(const char* name) {
  const std::string text = GetEnv(name).value_or("1");
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  SLUICE_CHECK_MSG(error == std::errc() && end == text.data() + text.size() && value > 0,
                   std::string(name) + " is '" + text + "'; it must be a positive number");
  return value;
}

inline std::vector<uint64_t> Seeds(uint64_t count) {
  std::vector<uint64_t> seeds(count * SeedSetting("SLUICE_SIM_SEEDS"));
  std::iota(seeds.begin(), seeds.end(), SeedSetting("SLUICE_SIM_FIRST_SEED"));
  return seeds;
}

}  // namespace sluice

#endif  // SLUICE_TESTS_CORE_SEEDS_H_
