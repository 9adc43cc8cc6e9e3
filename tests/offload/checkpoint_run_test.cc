// A run that is saved, and goes on elsewhere: on other numbers of ranks, at other stages, on other
// tiers, in other chunks, of other formats of states. What was saved is what training had made of
// the model, bit for bit; and what follows is what would have followed.

#include <filesystem>
#include <string>
#include <vector>

#include "offload/run/run_state.h"
#include "tests/offload/saved_run.h"
#include "tests/optim/other_states.h"

namespace sluice::testing {
namespace {

using CheckpointRunTest = SavedRunTest;

TEST_F(CheckpointRunTest, GoesOnAnywhereToTheSameBits) {
  struct Place {
    uint32_t ranks;
    int stage;
    Where where;
    int64_t chunk_cells;
    StateFormatMaker format = MakeFp32States;
    bool behind_link = false;
  };
  const std::vector<Place> places = {{1, 0, Where::kStatesOnNvme, 2, SplitMasters::Make},
                                     {2, 3, Where::kAllOnNvme, 2, SplitMasters::Make, true},
                                     {1, 0, Where::kAllInHbm, 2, MakeFp32States, true},
                                     {1, 0, Where::kAllInHbm, 2},
                                     {1, 0, Where::kAllOnNvme, 3},
                                     {2, 0, Where::kStatesOnHost, 2},
                                     {2, 1, Where::kStatesOnNvme, 1},
                                     {2, 3, Where::kAllOnNvme, 2},
                                     {3, 2, Where::kParamsPinned, 2},
                                     {3, 3, Where::kParamsPinned, 4}};
  const auto make = [this](const Place& place) {
    RanksCase c = Case(place.ranks, place.stage, place.where);
    c.config.chunk_elements = place.chunk_cells * kCellElements;
    c.config.format = place.format;
    c.behind_link = place.behind_link;
    return c;
  };
  for (size_t from = 0; from < places.size(); ++from) {
    const std::string tag = "step2-" + std::to_string(from);
    const auto [saved, later] = TrainAndSave(make(places[from]), tag);
    ASSERT_NE(saved, later);
    for (size_t to = 0; to < places.size(); ++to) {
      SCOPED_TRACE("from " + std::to_string(from) + " to " + std::to_string(to));
      OnEachRank(make(places[to]), [&](uint32_t, Running* running) {
        const absl::Status status = running->Do(From(tag));
        EXPECT_TRUE(status.ok()) << status.ToString();
        EXPECT_EQ(running->See(), saved);
        if (places[to].ranks != places[from].ranks) return;  // others give other gradients
        (void)running->Train(2, 4);
        EXPECT_EQ(running->See(), later);
      });
      if (HasFailure()) return;
    }
  }
}

TEST_F(CheckpointRunTest, AnotherTrainingIsReplacedByWhatIsLoaded) {
  const RanksCase c = Case(2, 3, Where::kAllOnNvme);
  const auto [saved, later] = TrainAndSave(c, "a");
  OnEachRank(c, [&, saved = saved, later = later](uint32_t, Running* running) {
    (void)running->Load();
    (void)running->Train(7, 10);
    EXPECT_NE(running->See(), saved);
    EXPECT_TRUE(running->Do(From("a")).ok());
    (void)running->Train(2, 4);
    EXPECT_EQ(running->See(), later);
    EXPECT_TRUE(running->Do(From("a")).ok());  // and again
    EXPECT_EQ(running->See(), saved);
  });
}

// Gradients are waiting for a step, and states are being read ahead for it.
TEST_F(CheckpointRunTest, BetweenBackwardAndStep) {
  for (const Where where : kEveryWhere) {
    for (const int stage : {0, 3}) {
      SCOPED_TRACE(std::to_string(static_cast<int>(where)) + " " + std::to_string(stage));
      const RanksCase c = Case(stage == 0 ? 1 : 2, stage, where);
      const SaveRequest request = Request("between");
      OnEachRank(c, [&](uint32_t, Running* running) {
        const auto backward = [&](int step) {
          for (int micro = 0; micro < c.training.micro_steps; ++micro)
            (void)running->Micro(step, micro);
        };
        (void)running->Load();
        (void)running->Train(0, 2);
        const Seen before = running->See();
        backward(2);
        EXPECT_TRUE(running->Do(request).ok());
        (void)running->Step();
        const Seen with = running->See();
        EXPECT_NE(with, before);
        // Loading forgets gradients: then a step changes nothing but the loss scale.
        backward(3);
        EXPECT_TRUE(running->Do(From("between")).ok());
        EXPECT_EQ(running->See(), before);
        (void)running->Step();
        const Seen stepped = running->See();
        EXPECT_EQ(stepped.values, before.values);
        EXPECT_EQ(stepped.steps, before.steps);
        EXPECT_TRUE(running->Do(From("between")).ok());
        (void)running->Train(2, 3);
        EXPECT_EQ(running->See(), with);
      });
    }
  }
}

// A run whose loss scale never changes says nothing of one that does.
TEST_F(CheckpointRunTest, AScaleThatNeverChangesIsNotHandedOn) {
  RanksCase fixed = Case(1, 0, Where::kStatesOnHost);
  fixed.config.loss_scale = {.static_scale = 1};
  (void)TrainAndSave(fixed, "fixed");
  const RanksCase dynamic = Case(1, 0, Where::kStatesOnHost);
  OnEachRank(dynamic, [&](uint32_t, Running* running) {
    EXPECT_TRUE(running->Do(From("fixed")).ok());
    EXPECT_EQ(running->runtime()->last_step().loss_scale, 16);
  });
}

TEST_F(CheckpointRunTest, WithoutWhatIsFrozen) {
  const RanksCase c = Case(2, 3, Where::kAllOnNvme);
  SaveRequest request = Request("part");
  request.without_frozen = true;
  OnEachRank(c, [&](uint32_t, Running* running) {
    (void)running->Load();
    (void)running->Train(0, 2);
    const Seen saved = running->See();
    EXPECT_TRUE(running->Do(request).ok());
    (void)running->Train(2, 3);
    EXPECT_EQ(running->Do(From("part")).code(), absl::StatusCode::kInvalidArgument);
    LoadRequest some = From("part");
    some.some = true;
    EXPECT_TRUE(running->Do(some).ok());
    EXPECT_EQ(running->See(), saved);
  });
}

// Frozen values are in every checkpoint, and written once.
TEST_F(CheckpointRunTest, FrozenValuesAreLinked) {
  const RanksCase c = Case(2, 1, Where::kStatesOnHost);
  const SaveRequest first = Request("a");
  const SaveRequest second = Request("b");
  OnEachRank(c, [&](uint32_t, Running* running) {
    (void)running->Load();
    EXPECT_TRUE(running->Do(first).ok());
    EXPECT_TRUE(running->Do(second).ok());
  });
  size_t frozen = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(saved_.path())) {
    if (entry.path().filename().string().find("frozen") == std::string::npos) continue;
    ++frozen;
    EXPECT_EQ(std::filesystem::hard_link_count(entry.path()), 2u) << entry.path();
  }
  EXPECT_EQ(frozen, 4u);
  Seen of_first;
  OnEachRank(c, [&](uint32_t rank, Running* running) {
    EXPECT_TRUE(running->Do(From("a")).ok());
    const Seen seen = running->See();
    if (rank == 0) of_first = seen;
  });
  std::filesystem::remove_all(saved_.path() + "/a");
  OnEachRank(c, [&](uint32_t, Running* running) {
    EXPECT_TRUE(running->Do(From("b")).ok());
    EXPECT_EQ(running->See(), of_first);
  });
}

TEST(RunStateTest, IsReadAsItWasWritten) {
  LossScaler scaler({.initial_scale_power = 5, .window = 2});
  for (int i = 0; i < 7; ++i) {
    ASSERT_TRUE(scaler.Update(i % 3 == 2).ok());
    const auto read = ParseRunState(RunStateText(scaler.state()));
    ASSERT_TRUE(read.ok()) << read.status().ToString();
    LossScaler other({.initial_scale_power = 5, .window = 2});
    other.Restore(*read);
    for (int j = 0; j < 9; ++j) {
      LossScaler one = scaler;
      ASSERT_TRUE(one.Update(j % 4 == 1).ok());
      ASSERT_TRUE(other.Update(j % 4 == 1).ok());
      EXPECT_EQ(one.scale(), other.scale());
      other.Restore(*read);
    }
  }
  const std::string rest = R"(, "hysteresis_left": 1, "steps_scaled": 1, "last_overflow": )";
  for (const std::string& text :
       {std::string(), std::string("{}"), std::string("[]"), R"({"loss_scale": 0)" + rest + "-1}",
        R"({"loss_scale": 1e999)" + rest + "-1}", R"({"loss_scale": 2)" + rest + "9}"})
    EXPECT_EQ(ParseRunState(text).status().code(), absl::StatusCode::kDataLoss) << text;
}

}  // namespace
}  // namespace sluice::testing
