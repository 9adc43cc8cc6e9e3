// A load over the simulated engine, whose times are arithmetic and which refuses transfers that
// overlap, and over every real engine, for its data.

#include "nvme/io_load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "core/sim_world.h"
#include "fmt/format.h"
#include "nvme/sim_io_engine.h"
#include "tests/core/seeds.h"
#include "tests/nvme/engine_fixture.h"

namespace sluice {
namespace {

using testing::HasSubstr;

constexpr double kRate = 1e9;
constexpr Nanos kLatency{200'000};
constexpr Bytes kStretch = KiB(256);
constexpr std::array kFiles = {MiB(4), MiB(2) + KiB(12)};
constexpr Bytes kArea = MiB(6);  // in whole stretches

struct Simulation {
  explicit Simulation(uint64_t seed = 1, uint32_t depth = 64) : world(seed) {
    engine = MakeSimIoEngine(
        {.bytes_per_second = {kRate}, .latency_min = kLatency, .latency_max = kLatency}, kFiles,
        {.in_flight_max = depth}, &world);
  }
  IoLoadResult MustRun(const IoPattern& pattern) {
    absl::StatusOr<IoLoadResult> result = load.Run(pattern, engine.get());
    SLUICE_CHECK_MSG(result.ok(), Message(result.status()));
    return *std::move(result);
  }
  // Of the transfers that have ended, in order.
  struct Logged {
    IoKind kind;
    int64_t size, file, offset;
  };
  std::vector<Logged> Log() const {
    std::vector<Logged> log;
    std::istringstream text(world.log());
    for (std::string line; std::getline(text, line);) {
      char kind[8] = {};
      Logged l{};
      if (std::sscanf(line.c_str(), "%*s %7s of %ld at %ld:%ld ends", kind, &l.size, &l.file,
                      &l.offset) != 4)
        continue;
      l.kind = std::string(kind) == "read" ? IoKind::kRead : IoKind::kWrite;
      log.push_back(l);
    }
    return log;
  }

  SimWorld world;
  AlignedBuffer memory{8 << 20};
  IoLoad load{kFiles, memory.view(), &world, {.stretch = kStretch}};
  std::unique_ptr<IoEngine> engine;
};

// A transfer takes request / rate on the drive, one after another, and the latency beside them.
TEST(IoLoadTest, RateAndLatencyAreThoseOfTheDrive) {
  for (const int64_t kib : {4, 32, 256}) {
    for (const uint32_t depth : {1u, 2u, 7u, 32u}) {
      for (const double share : {1.0, 0.0, 0.5}) {
        SCOPED_TRACE(fmt::format("{} KiB x {}, {} read", kib, depth, share));
        Simulation sim;
        const Bytes request = KiB(kib);
        const Bytes total = request * 96;
        const IoLoadResult result = sim.MustRun({.request = request,
                                                 .in_flight = depth,
                                                 .read_share = share,
                                                 .run = request,
                                                 .bytes_max = total});
        const double served = static_cast<double>(request.value()) / kRate;
        const double alone = served + Seconds(kLatency);
        const double per_transfer = std::max(served, alone / depth);
        EXPECT_EQ(result.bytes(), total);
        EXPECT_EQ(result.reads().bytes.value(), std::llround(share * 96) * request.value());
        EXPECT_NEAR(result.seconds, 96 * per_transfer, alone + 96 * 2e-9);
        EXPECT_NEAR(result.bytes_per_second(), static_cast<double>(total.value()) / result.seconds,
                    1);
        for (const IoLoadResult::Kind& kind : result.kinds) {
          EXPECT_EQ(kind.latency_ns.count(), kind.bytes / request);
          if (depth == 1 && kind.bytes > Bytes(0)) {
            EXPECT_NEAR(static_cast<double>(kind.latency_ns.max()), alone * 1e9, 2);
          }
          EXPECT_LE(static_cast<double>(kind.latency_ns.max()),
                    std::max(alone, depth * served + Seconds(kLatency)) * 1e9 + 100);
        }
        EXPECT_EQ(result.checked, Bytes(0));
      }
    }
  }
}

TEST(IoLoadTest, EndsAtItsDeadline) {
  for (const int64_t ms : {1, 5, 20}) {
    Simulation sim;
    const Nanos limit = Nanos(ms * 1'000'000);
    const IoLoadResult result =
        sim.MustRun({.request = KiB(64), .in_flight = 8, .deadline = sim.world.Now() + limit});
    const double tail = 8 * 65536 / kRate + Seconds(kLatency);
    EXPECT_GE(result.seconds, Seconds(limit));
    EXPECT_LE(result.seconds, Seconds(limit) + tail);
    EXPECT_EQ(
        sim.load.Run({.request = KiB(64), .deadline = sim.world.Now()}, sim.engine.get())->bytes(),
        Bytes(0));
  }
}

// One at a time, so that the log has the order in which they began.
TEST(IoLoadTest, EachSweepIsEveryStretchFromItsBeginningToItsEnd) {
  for (const uint64_t seed : Seeds(20)) {
    Simulation sim(seed);
    sim.MustRun({.request = KiB(64), .in_flight = 1, .read_share = 0, .bytes_max = kArea * 2});
    const auto log = sim.Log();
    ASSERT_EQ(log.size(), 2 * 96u);
    std::vector<std::pair<int64_t, int64_t>> sweeps[2];
    size_t jumps = 0;
    for (size_t i = 0; i < log.size(); ++i) {
      EXPECT_EQ(log[i].size, 64 << 10);
      sweeps[i / 96].emplace_back(log[i].file, log[i].offset);
      if (i % 4 == 0) {
        EXPECT_EQ(log[i].offset % kStretch.value(), 0);
        jumps += i > 0 && log[i].offset != log[i - 1].offset + log[i - 1].size;
      } else {
        EXPECT_EQ(log[i].file, log[i - 1].file);
        EXPECT_EQ(log[i].offset, log[i - 1].offset + log[i - 1].size);
      }
    }
    EXPECT_GT(jumps, 24u);  // of 47: shuffled
    EXPECT_EQ(sweeps[0], sweeps[1]);
    EXPECT_EQ(std::set(sweeps[0].begin(), sweeps[0].end()).size(), 96u);
    for (const auto& [file, offset] : sweeps[0]) {
      EXPECT_LE(offset + (64 << 10), kFiles[static_cast<size_t>(file)].value());
    }
  }
}

TEST(IoLoadTest, KindsTakeTurnsInRunsAndKeepTheirShare) {
  for (const double share : {0.5, 0.25, 0.9}) {
    for (const int64_t run : {1, 2, 8}) {
      SCOPED_TRACE(fmt::format("{} read, runs of {}", share, run));
      Simulation sim;
      const IoLoadResult result = sim.MustRun({.request = KiB(16),
                                               .in_flight = 1,
                                               .read_share = share,
                                               .run = KiB(16) * run,
                                               .bytes_max = KiB(16) * 800});
      const auto log = sim.Log();
      ASSERT_EQ(log.size(), 800u);
      size_t i = 0;
      while (i < log.size()) {
        size_t same = i;
        while (same < log.size() && log[same].kind == log[i].kind) ++same;
        EXPECT_EQ((same - i) % static_cast<size_t>(run), 0u);
        EXPECT_TRUE(share != 0.5 || same - i == static_cast<size_t>(run));
        i = same;
      }
      EXPECT_NEAR(static_cast<double>(result.reads().bytes.value()),
                  share * static_cast<double>(result.bytes().value()),
                  static_cast<double>(run * 16384));
    }
  }
}

// The engine ends a transfer that overlaps another with Internal.
TEST(IoLoadTest, NoTwoTouchOnePlaceAtATime) {
  for (const uint64_t seed : Seeds(40)) {
    SCOPED_TRACE(seed);
    Simulation sim(seed, 1 + static_cast<uint32_t>(seed % 40));
    for (const int64_t kib : {8, 20, 256, 12, 64}) {
      const IoLoadResult result = sim.MustRun({.request = KiB(kib),
                                               .in_flight = 40,
                                               .read_share = 0.25 * (1 + seed % 3),
                                               .run = KiB(24),
                                               .check = IoCheck::kData,
                                               .bytes_max = kArea * 2});
      EXPECT_GE(result.bytes(), kArea * 2);
    }
  }
}

TEST(IoLoadTest, AfterAFillEverythingReadIsChecked) {
  Simulation sim;
  const IoPattern fill{
      .request = KiB(64), .read_share = 0, .check = IoCheck::kData, .bytes_max = kArea};
  EXPECT_EQ(sim.MustRun(fill).writes().bytes, kArea);
  const IoPattern sweep{.request = KiB(32), .check = IoCheck::kData, .bytes_max = kArea};
  EXPECT_EQ(sim.MustRun(sweep).checked, kArea);
  // What is written without a check is not known any more, until it is written again.
  sim.MustRun({.request = KiB(64), .read_share = 0, .bytes_max = MiB(1)});
  EXPECT_EQ(sim.MustRun(sweep).checked, kArea - MiB(1));
  sim.MustRun(fill);
  EXPECT_EQ(sim.MustRun(sweep).checked, kArea);
}

TEST(IoLoadTest, EveryWrongByteIsFound) {
  for (const SimFault fault : {SimFault::kCorrupt, SimFault::kLost}) {
    for (const SimSeam seam : {SimSeam::kRead, SimSeam::kWrite}) {
      for (const uint64_t nth : {1, 2, 50, 96}) {
        Simulation sim;
        const IoPattern fill{
            .request = KiB(64), .read_share = 0, .check = IoCheck::kData, .bytes_max = kArea};
        sim.MustRun(fill);  // so that a lost write leaves something older
        sim.world.faults()->Script(seam, fault, nth, SimFaults::Repeat::kOnce);
        sim.MustRun(fill);
        const auto result = sim.load.Run(
            {.request = KiB(64), .check = IoCheck::kData, .bytes_max = kArea}, sim.engine.get());
        EXPECT_TRUE(absl::IsDataLoss(result.status())) << result.status();
        EXPECT_THAT(std::string(Message(result.status())),
                    HasSubstr("is not what was written there"));
        EXPECT_EQ(sim.engine->in_flight(), 0u);
      }
    }
  }
}

TEST(IoLoadTest, TheFirstErrorEndsTheRunAndNothingStaysInFlight) {
  for (const SimFault fault : {SimFault::kError, SimFault::kRefused, SimFault::kShort}) {
    for (const SimSeam seam : {SimSeam::kRead, SimSeam::kWrite}) {
      for (uint64_t nth = 1; nth < 40; nth += 4) {
        Simulation sim;
        sim.world.faults()->Script(seam, fault, nth, SimFaults::Repeat::kOnce);
        const IoPattern mixed{.request = KiB(64),
                              .in_flight = 8,
                              .read_share = 0.5,
                              .run = KiB(128),
                              .bytes_max = kArea};
        const auto result = sim.load.Run(mixed, sim.engine.get());
        ASSERT_FALSE(result.ok());
        EXPECT_THAT(std::string(Message(result.status())),
                    HasSubstr(seam == SimSeam::kRead ? "reading 65536" : "writing 65536"));
        EXPECT_EQ(sim.engine->in_flight(), 0u);
        EXPECT_EQ(sim.MustRun(mixed).bytes(), kArea);
      }
    }
  }
}

TEST(IoLoadTest, IsStopped) {
  Simulation sim;
  std::atomic<bool> stop{false};
  sim.world.At(Nanos(3'000'000), [&stop] { stop = true; });
  const auto result = sim.load.Run({.request = KiB(64), .stop = &stop}, sim.engine.get());
  EXPECT_TRUE(absl::IsCancelled(result.status()));
  EXPECT_EQ(sim.engine->in_flight(), 0u);
  EXPECT_LT(Seconds(sim.world.Now()), 0.02);
}

TEST(IoLoadTest, RefusesWhatItCantDo) {
  Simulation sim;
  for (const IoPattern& pattern : {IoPattern{.request = Bytes(0)},
                                   {.request = Bytes(6000)},
                                   {.request = Bytes(-4096)},
                                   {.request = kStretch + KiB(4)},
                                   {.request = KiB(4), .in_flight = 0}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(sim.load.Run(pattern, sim.engine.get()).status()));
  }
}

class IoLoadEngineTest : public EngineFixture {};
INSTANTIATE_TEST_SUITE_P(All, IoLoadEngineTest,
                         testing::Values(EngineName::kIoUring, EngineName::kLibaio,
                                         EngineName::kThreads, EngineName::kSimulated),
                         NameOf);

TEST_P(IoLoadEngineTest, MovesTheRightBytes) {
  Start();
  IoLoad load(std::array{kFileSize, kFileSize}, arena_.view(), &clock(), {.stretch = KiB(512)});
  const Bytes area = kFileSize * 2;
  for (const double share : {0.0, 1.0, 0.5}) {
    const auto result = load.Run({.request = KiB(128),
                                  .in_flight = 6,
                                  .read_share = share,
                                  .run = KiB(256),
                                  .check = IoCheck::kData,
                                  .bytes_max = area},
                                 engine_.get());
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->bytes(), area);
    EXPECT_EQ(result->checked.value(), std::llround(share * static_cast<double>(area.value())));
    EXPECT_GT(result->seconds, 0);
    EXPECT_GE(result->cpu_seconds, 0);
  }
  if (simulated()) return;
  // A byte that somebody else changes is found, and said.
  AlignedBuffer page(4096);
  ASSERT_EQ(pread(files_[1].fd(), page.view().data(), 4096, 1 << 20), 4096);
  page.view()[77] ^= std::byte{4};
  ASSERT_EQ(pwrite(files_[1].fd(), page.view().data(), 4096, 1 << 20), 4096);
  const auto result =
      load.Run({.request = KiB(128), .check = IoCheck::kData, .bytes_max = area}, engine_.get());
  EXPECT_TRUE(absl::IsDataLoss(result.status()));
  EXPECT_THAT(std::string(Message(result.status())),
              testing::AllOf(HasSubstr("of swap file 1"),
                             HasSubstr(fmt::format("byte {} is not", (1 << 20) + 77))));
}

}  // namespace
}  // namespace sluice
