// The block store over the simulated engine: failures at will, and random work against a model.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "core/status.h"
#include "tests/core/seeds.h"
#include "tests/nvme/store_trial.h"

namespace sluice {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(BlockStoreSimTest, AFailedWritePoisonsItsBlockOnlyUntilItIsWrittenAgain) {
  Trial trial(1);
  for (uint32_t b = 0; b < kBlocks; ++b) trial.StartWrite(b, b);
  trial.Drain();
  trial.world().faults()->Script(SimSeam::kWrite, SimFault::kError, 1, SimFaults::Repeat::kOnce);
  trial.StartWrite(3, 33);
  trial.Drain();
  EXPECT_TRUE(absl::IsDataLoss(trial.status(3)));
  for (uint32_t b = 0; b < kBlocks; ++b) trial.StartRead(b);
  trial.Drain();
  EXPECT_EQ(trial.reads_ok(), kBlocks - 1);
  EXPECT_EQ(trial.reads_refused(), 1u);
  EXPECT_THAT(Message(trial.status(3)),
              AllOf(HasSubstr("block 3 can't be read"), HasSubstr("generation 2")));
  trial.StartWrite(3, 34);
  trial.Drain();
  trial.StartRead(3);
  trial.Drain();
  EXPECT_TRUE(trial.status(3).ok()) << trial.status(3);
  EXPECT_EQ(trial.reads_ok(), kBlocks);
}

// Whichever write fails and however: in place it takes its block's bytes with it, elsewhere it
// leaves them, and no other block is touched.
TEST(BlockStoreSimTest, OneFailedWriteOfEachKind) {
  for (const WritePlace place : {WritePlace::kInPlace, WritePlace::kElsewhere}) {
    for (const SimFault fault : {SimFault::kError, SimFault::kShort, SimFault::kRefused}) {
      for (uint64_t nth = 1; nth <= kBlocks; ++nth) {
        SCOPED_TRACE(nth);
        Trial trial(nth, kBlocks);
        for (uint32_t b = 0; b < kBlocks; ++b) trial.StartWrite(b, b);
        trial.Drain();
        trial.world().faults()->Script(SimSeam::kWrite, fault, nth, SimFaults::Repeat::kOnce);
        for (uint32_t b = 0; b < kBlocks; ++b) trial.StartWrite(b, 100 + b, place);
        trial.Drain();
        size_t failed = 0;
        for (uint32_t b = 0; b < kBlocks; ++b) failed += !trial.status(b).ok();
        EXPECT_EQ(failed, 1u);
        for (uint32_t b = 0; b < kBlocks; ++b) trial.StartRead(b);
        trial.Drain();
        const size_t lost = place == WritePlace::kInPlace ? 1 : 0;
        EXPECT_EQ(trial.reads_ok(), kBlocks - lost);
        EXPECT_EQ(trial.reads_refused(), lost);
        for (uint32_t b = 0; b < kBlocks; ++b) trial.StartWrite(b, 200 + b, place);
        trial.Drain();
        for (uint32_t b = 0; b < kBlocks; ++b) trial.StartRead(b);
        trial.Drain();
        EXPECT_EQ(trial.reads_ok(), 2 * kBlocks - lost);
      }
    }
  }
}

// A write elsewhere that the drive drops leaves in the extent what was there: another generation,
// or another block.
TEST(BlockStoreSimTest, ALostWriteElsewhereIsFound) {
  for (uint64_t nth = 1; nth <= kBlocks; ++nth) {
    Trial trial(nth, 1);
    const auto write_all = [&trial](uint64_t content) {
      for (uint32_t b = 0; b < kBlocks; ++b) {
        trial.StartWrite(b, content + b, WritePlace::kElsewhere);
        trial.Drain();
      }
    };
    for (const uint64_t content : {100, 200, 300}) write_all(content);
    trial.world().faults()->Script(SimSeam::kWrite, SimFault::kLost, nth, SimFaults::Repeat::kOnce);
    write_all(400);
    for (uint32_t b = 0; b < kBlocks; ++b) trial.StartRead(b);
    trial.Drain();
    EXPECT_EQ(trial.reads_unverified(), 1u);
    EXPECT_EQ(trial.reads_ok(), kBlocks - 1);
  }
}

// Every generation that is kept stays readable through as many writes as there are.
TEST(BlockStoreSimTest, PinnedGenerationsOutliveTheWritesAfterThem) {
  Trial trial(1, 3 * kBlocks / 2);
  for (uint64_t round = 0; round < 4; ++round) {
    for (uint32_t b = 0; b < kBlocks; ++b) trial.StartWrite(b, 100 * round + b);
    trial.Drain();
    for (uint32_t b = 0; b < kBlocks && round < 3; ++b) trial.Pin(b);
    for (size_t p = 0; p < trial.pins(); ++p) trial.ReadPin(p);
    trial.Drain();
  }
  EXPECT_EQ(trial.reads_ok(), kBlocks * (1 + 2 + 3 + 3));
  EXPECT_EQ(trial.writes_refused(), 0u);
  for (uint32_t b = 0; b < kBlocks; ++b) trial.Pin(b);
  for (uint32_t b = 0; b < kBlocks; ++b) trial.StartWrite(b, 1000 + b);
  trial.Drain();
  EXPECT_EQ(trial.writes_refused(), kBlocks) << "all spare extents are pinned";
  while (trial.pins() > 0) trial.Unpin(0);
  for (uint32_t b = 0; b < kBlocks; ++b) trial.StartWrite(b, 2000 + b);
  trial.Drain();
  for (uint32_t b = 0; b < kBlocks; ++b) trial.StartRead(b);
  trial.Drain();
  EXPECT_EQ(trial.reads_ok(), kBlocks * 10);
}

// Random work; returns what was counted. Whatever goes wrong, no read passes for right that isn't.
struct Counts {
  size_t reads_ok = 0;
  size_t reads_refused = 0;
  size_t reads_unverified = 0;
  size_t writes_refused = 0;
};
Counts RunRandomly(const std::vector<SimFault>& faults, uint64_t seeds) {
  Counts counts;
  for (const uint64_t seed : Seeds(seeds)) {
    if (testing::Test::HasFailure()) break;
    SCOPED_TRACE(seed);
    Trial trial(seed);
    SimWorld& world = trial.world();
    for (SimFault fault : faults) {
      world.faults()->Draw(SimSeam::kRead, fault, 20);
      world.faults()->Draw(SimSeam::kWrite, fault, 20);
    }
    for (int i = 0; i < 200; ++i) {
      const auto b = static_cast<uint32_t>(world.Uniform(0, kBlocks - 1));
      const WritePlace place = world.OneIn(2) ? WritePlace::kInPlace : WritePlace::kElsewhere;
      const auto p = static_cast<size_t>(world.Uniform(0, std::max<size_t>(trial.pins(), 1) - 1));
      if (world.OneIn(8)) {
        trial.Pin(b);
      } else if (world.OneIn(6) && p < trial.pins()) {
        world.OneIn(2) ? trial.ReadPin(p) : trial.Unpin(p);
      } else if (trial.busy(b)) {
        trial.Poll(world.OneIn(4) ? kNoWait : world.Now() + Nanos(100'000));
      } else if (world.OneIn(10)) {
        trial.CancelWrite(b, place);
      } else if (world.OneIn(2)) {
        trial.StartRead(b);
      } else {
        trial.StartWrite(b, world.Random(), place);
      }
    }
    trial.Drain();
    counts.reads_ok += trial.reads_ok();
    counts.reads_refused += trial.reads_refused();
    counts.reads_unverified += trial.reads_unverified();
    counts.writes_refused += trial.writes_refused();
  }
  return counts;
}

TEST(BlockStoreSimTest, RandomWorkWithErrorsAgreesWithTheModel) {
  const Counts counts =
      RunRandomly({SimFault::kError, SimFault::kShort, SimFault::kRefused, SimFault::kLate}, 150);
  EXPECT_GT(counts.reads_ok, 1000u);
  EXPECT_GT(counts.reads_refused, 100u);
  EXPECT_GT(counts.writes_refused, 100u);
  EXPECT_EQ(counts.reads_unverified, 0u);
}

TEST(BlockStoreSimTest, RandomWorkWithWrongBytesAgreesWithTheModel) {
  const Counts counts = RunRandomly({SimFault::kCorrupt, SimFault::kLost, SimFault::kError}, 150);
  EXPECT_GT(counts.reads_ok, 1000u);
  EXPECT_GT(counts.reads_unverified, 100u);
}

TEST(BlockStoreSimTest, RandomWorkWithoutFaultsAgreesWithTheModel) {
  EXPECT_EQ(RunRandomly({}, 50).reads_unverified, 0u);
}

TEST(BlockStoreSimTest, TheSameSeedGivesTheSameLog) {
  const auto log = [](uint64_t seed) {
    Trial trial(seed);
    for (uint32_t b = 0; b < kBlocks; ++b) trial.StartWrite(b, b);
    trial.Drain();
    return trial.world().log();
  };
  EXPECT_EQ(log(5), log(5));
  EXPECT_NE(log(5), log(6));
  EXPECT_THAT(log(5), HasSubstr("write of 8192 at 0:0 ends"));
}

}  // namespace
}  // namespace sluice
