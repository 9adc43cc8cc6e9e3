// Planted bugs: each is found by some seed, of a thousand at most.

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "fmt/format.h"
#include "tests/offload/sim_caller.h"
#include "tests/offload/simulation.h"

namespace sluice {
namespace {

using testing::ConfigOf;
using testing::Masters;
using testing::OddModel;
using testing::Outcome;
using testing::SameBits;
using testing::Simulate;
using testing::TrainerOptions;

struct Bug {
  PlantedBug bug;
  const char* name;
  bool corrupt = false;  // shows only if the drive returns wrong bytes
  bool streams = false;  // shows only if the caller computes on a stream of its own
};

// What is wrong with the run of `seed`; empty if nothing is.
std::string Symptom(const Bug& bug, uint64_t seed, const Masters& expected,
                    const TrainerOptions& options) {
  RuntimeConfig config = ConfigOf(seed);
  config.budgets.hbm = std::max(config.budgets.hbm, KiB(240));  // room beside a lingering view
  const auto faults = [&bug](SimFaults* f) {
    if (bug.corrupt) f->Draw(SimSeam::kRead, SimFault::kCorrupt, 50);
  };
  testing::SimCaller caller;
  const Outcome outcome =
      Simulate(OddModel(), config, {.seed = seed, .planted_bug = bug.bug, .faults = faults},
               options, bug.streams ? &caller : nullptr);
  const bool reported = bug.corrupt && outcome.faults > 0 && absl::IsDataLoss(outcome.status);
  if (!outcome.status.ok() && !reported) return outcome.status.ToString();
  if (outcome.status.ok() && !SameBits(outcome.masters, expected)) return "wrong values";
  return outcome.unsettled;
}

// Tries seeds in a child, for a bug may also end the process at a check. The child writes each seed
// before it tries it, and the symptom after.
std::string FindInChild(const Bug& bug, uint64_t seeds) {
  const TrainerOptions options{
      .steps = 3, .lingering_views = 1, .units_ahead = bug.streams ? size_t{2} : 0};
  const Masters expected = TrainReference(OddModel(), options);
  int ends[2];
  SLUICE_CHECK(pipe(ends) == 0);
  const pid_t child = fork();
  SLUICE_CHECK(child >= 0);
  if (child == 0) {
    for (uint64_t seed = 1; seed <= seeds; ++seed) {
      dprintf(ends[1], "seed %llu: ", static_cast<unsigned long long>(seed));
      const std::string symptom = Symptom(bug, seed, expected, options);
      dprintf(ends[1], "%s\n", symptom.c_str());
      if (!symptom.empty()) _exit(1);
    }
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n = 0; (n = read(ends[0], buffer, sizeof(buffer))) > 0;)
    text.append(buffer, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  SLUICE_CHECK(waitpid(child, &status, 0) == child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return "";
  if (!text.empty() && text.back() == '\n') text.pop_back();
  const size_t last = text.rfind('\n');
  if (last != std::string::npos) text.erase(0, last + 1);
  return WIFSIGNALED(status) ? text + "stopped by a check" : text;
}

class PlantedBugTest : public ::testing::TestWithParam<Bug> {};

INSTANTIATE_TEST_SUITE_P(
    All, PlantedBugTest,
    ::testing::Values(Bug{PlantedBug::kReuseBeforeWritten, "ReuseBeforeWritten"},
                      Bug{PlantedBug::kStaleGeneration, "StaleGeneration"},
                      Bug{PlantedBug::kLostWrite, "LostWrite"},
                      Bug{PlantedBug::kSwappedBlocks, "SwappedBlocks"},
                      Bug{PlantedBug::kDroppedEvent, "DroppedEvent"},
                      Bug{PlantedBug::kDoubleRelease, "DoubleRelease"},
                      Bug{PlantedBug::kUnverifiedRead, "UnverifiedRead", true},
                      Bug{PlantedBug::kEvictViewed, "EvictViewed"},
                      Bug{PlantedBug::kUsedBeforeItCame, "UsedBeforeItCame", false, true},
                      Bug{PlantedBug::kCopiedOverReaders, "CopiedOverReaders", false, true}),
    [](const ::testing::TestParamInfo<Bug>& info) { return std::string(info.param.name); });

TEST_P(PlantedBugTest, IsFound) {
  const std::string found = FindInChild(GetParam(), 1000);
  EXPECT_NE(found, "") << "a thousand seeds did not find it";
  RecordProperty("found", found);
  fmt::print("{}: {}\n", GetParam().name, found);
}

// What finds them finds nothing where there is nothing.
TEST(NoPlantedBugTest, NothingIsFound) {
  EXPECT_EQ(FindInChild({PlantedBug::kNone, "None"}, 60), "");
  EXPECT_EQ(FindInChild({PlantedBug::kNone, "None", true}, 60), "");
  EXPECT_EQ(FindInChild({PlantedBug::kNone, "None", false, true}, 60), "");
}

}  // namespace
}  // namespace sluice
