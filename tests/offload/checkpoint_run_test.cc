// A run that is saved, and goes on elsewhere: on other numbers of ranks, at other stages, on other
// tiers, in other chunks, of other formats of states. What was saved is what training had made of
// the model, bit for bit; and what follows is what would have followed.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "offload/checkpoint/reader.h"
#include "offload/run/run_state.h"
#include "tests/nvme/temp_dir.h"
#include "tests/offload/ranks_fixture.h"

namespace sluice::testing {
namespace {

constexpr Field kFields[] = {Field::kMaster, Field::kExpAvg, Field::kExpAvgSq};

// What there is of a model: by tensor, its fields and its number of updates.
struct Seen {
  std::vector<std::vector<std::vector<float>>> values;
  std::vector<int64_t> steps;
  double loss_scale = 0;
  friend bool operator==(const Seen&, const Seen&) = default;
};

class Running {
 public:
  Running(const RanksCase& c, uint32_t rank, RankLinks links) : case_(c) {
    TrainerOptions training = c.training;
    training.rank = rank;
    training.ranks = c.ranks;
    auto made = MakeRank(c, rank, std::move(links));
    status_ = made.status();
    if (!made.ok()) return;
    runtime_ = *std::move(made);
    trainer_ = std::make_unique<Trainer>(runtime_.get(), c.spec, training);
  }
  ~Running() {
    trainer_.reset();
    if (runtime_ == nullptr) return;
    EXPECT_TRUE(OffloadRuntime::Close(std::move(runtime_)).ok());
  }

  absl::Status Load() { return Note(status_.ok() ? trainer_->Load() : status_); }
  absl::Status Train(int from, int to) {
    for (int step = from; status_.ok() && step < to; ++step) {
      for (int micro = 0; status_.ok() && micro < case_.training.micro_steps; ++micro)
        Note(trainer_->MicroStep(step, micro));
      if (status_.ok()) {
        Note(trainer_->Wait(runtime_->Step(
            {.groups = case_.training.groups, .clip_norm = case_.training.clip_norm})));
      }
    }
    return status_;
  }
  absl::Status Do(CheckpointCall call) {
    return status_.ok() ? trainer_->Wait(runtime_->Checkpoint(std::move(call))) : status_;
  }
  Seen See() {
    Seen seen;
    for (uint32_t t = 0; status_.ok() && t < case_.spec.tensors.size(); ++t) {
      seen.values.emplace_back();
      for (const Field field : kFields) {
        if (field != Field::kMaster && case_.spec.tensors[t].keep == Keep::kParam) continue;
        auto values = trainer_->Read(t, field);
        Note(values.status());
        if (values.ok()) seen.values.back().push_back(*std::move(values));
      }
      seen.steps.push_back(runtime_->tensor_step(TensorIndex(t)));
    }
    seen.loss_scale = runtime_ == nullptr ? 0 : runtime_->last_step().loss_scale;
    return seen;
  }
  OffloadRuntime* runtime() { return runtime_.get(); }
  const absl::Status& status() const { return status_; }

 private:
  const absl::Status& Note(const absl::Status& status) {
    if (status_.ok()) status_ = status;
    return status_;
  }

  const RanksCase& case_;
  absl::Status status_;
  std::unique_ptr<OffloadRuntime> runtime_;
  std::unique_ptr<Trainer> trainer_;
};

// Each rank of the case does `f` with a runtime of its own.
void OnEachRank(const RanksCase& c, const std::function<void(uint32_t, Running*)>& f) {
  auto links = c.ranks > 1 ? LinkRanks(c.ranks, c.behind_link) : std::vector<RankLinks>(1);
  OnRanks(c.ranks, [&](uint32_t r) {
    Running running(c, r, std::move(links[r]));
    EXPECT_TRUE(running.status().ok()) << running.status().ToString();
    f(r, &running);
    EXPECT_TRUE(running.status().ok()) << "rank " << r << ": " << running.status().ToString();
  });
}

class CheckpointRunTest : public ::testing::Test {
 protected:
  RanksCase Case(uint32_t ranks, int stage, Where where, uint64_t model = 3) {
    RanksCase c = CaseAt(ranks, stage, where, swap_.path());
    c.spec = MixedModel(model);
    c.config.loss_scale.static_scale = 0;  // dynamic
    c.config.loss_scale.initial_scale_power = 4;
    c.config.loss_scale.window = 2;
    return c;
  }
  SaveRequest Request(const std::string& tag) {
    return {.place = {.directory = saved_.path(), .tag = tag, .id = ++id_}, .latest = true};
  }
  LoadRequest From(const std::string& tag) { return {.directory = saved_.path(), .tag = tag}; }

  // Trains two steps, saves, and goes on for two more: what there is at both times.
  std::pair<Seen, Seen> TrainAndSave(const RanksCase& c, const std::string& tag) {
    const SaveRequest request = Request(tag);
    Seen saved;
    Seen later;
    std::mutex mutex;
    OnEachRank(c, [&](uint32_t, Running* running) {
      (void)running->Load();
      (void)running->Train(0, 2);
      const absl::Status status = running->Do(request);
      EXPECT_TRUE(status.ok()) << status.ToString();
      Seen first = running->See();
      (void)running->Train(2, 4);
      Seen second = running->See();
      const std::lock_guard lock(mutex);
      saved = std::move(first);
      later = std::move(second);
    });
    return {saved, later};
  }

  TempDir swap_;
  TempDir saved_;
  uint64_t id_ = 0;
};

TEST_F(CheckpointRunTest, GoesOnAnywhereToTheSameBits) {
  struct Place {
    uint32_t ranks;
    int stage;
    Where where;
    int64_t chunk_cells;
  };
  const std::vector<Place> places = {
      {1, 0, Where::kAllInHbm, 2},     {1, 0, Where::kAllOnNvme, 3},
      {2, 0, Where::kStatesOnHost, 2}, {2, 1, Where::kStatesOnNvme, 1},
      {2, 3, Where::kAllOnNvme, 2},    {3, 2, Where::kParamsPinned, 2},
      {3, 3, Where::kParamsPinned, 4}};
  const auto make = [this](const Place& place) {
    RanksCase c = Case(place.ranks, place.stage, place.where);
    c.config.chunk_elements = place.chunk_cells * kCellElements;
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

// What keeps one rank from it keeps all, and changes nothing.
TEST_F(CheckpointRunTest, WhatOneCannotSaveNoneHasSaved) {
  const RanksCase c = Case(3, 3, Where::kParamsPinned);
  const SaveRequest good = Request("good");
  const SaveRequest again = Request("good");
  OnEachRank(c, [&](uint32_t rank, Running* running) {
    (void)running->Load();
    EXPECT_TRUE(running->Do(good).ok());
    (void)running->Train(0, 1);
    SaveRequest bad = again;
    if (rank == 1) bad.place.directory = saved_.path() + "/no/such/parent";
    const absl::Status status = running->Do(bad);
    EXPECT_FALSE(status.ok());
    EXPECT_NE(status.message().find(rank == 1 ? "no/such/parent" : "rank 1"), std::string::npos)
        << status.ToString();
    (void)running->Train(1, 2);  // goes on
  });
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(saved_.path()))
    names.push_back(entry.path().filename().string());
  std::ranges::sort(names);
  EXPECT_EQ(names, (std::vector<std::string>{"good", "latest"}));
  OnEachRank(c, [&](uint32_t, Running* running) {
    EXPECT_TRUE(running->Do(From("")).ok());
    EXPECT_EQ(running->runtime()->tensor_step(TensorIndex(0)), 0);
  });
}

TEST_F(CheckpointRunTest, NothingIsChangedByWhatCannotBeLoaded) {
  RanksCase c = Case(2, 1, Where::kStatesOnHost);
  (void)TrainAndSave(c, "a");
  RanksCase other = c;
  other.spec.tensors[1].elements += 1;
  RanksCase renamed = c;
  renamed.spec.tensors[2].name = "elsewhere";
  const auto refuses = [&](const RanksCase& model, const LoadRequest& request,
                           const std::string& words) {
    OnEachRank(model, [&](uint32_t, Running* running) {
      (void)running->Load();
      (void)running->Train(0, 1);
      const Seen before = running->See();
      const absl::Status status = running->Do(request);
      EXPECT_FALSE(status.ok());
      EXPECT_NE(status.message().find(words), std::string::npos) << status.ToString();
      EXPECT_EQ(running->See(), before);
      (void)running->Train(1, 2);
    });
  };
  refuses(c, From("b"), "b");
  refuses(other, From("a"), other.spec.tensors[1].name);
  refuses(renamed, From("a"), "elsewhere");
  // It can be loaded without what it lacks, which stays as it was.
  OnEachRank(renamed, [&](uint32_t, Running* running) {
    (void)running->Load();
    const Seen before = running->See();
    LoadRequest some = From("a");
    some.some = true;
    EXPECT_TRUE(running->Do(some).ok());
    const Seen after = running->See();
    for (size_t t = 0; t < after.values.size(); ++t) {
      const bool trained = renamed.spec.tensors[t].keep != Keep::kParam;
      EXPECT_EQ(after.values[t] == before.values[t], t == 2 || !trained) << t;
    }
  });
  // Without states: as if training began with these values.
  OnEachRank(c, [&](uint32_t, Running* running) {
    LoadRequest values = From("a");
    values.without_states = true;
    EXPECT_TRUE(running->Do(values).ok());
    for (const auto& fields : running->See().values) {
      for (size_t f = 1; f < fields.size(); ++f)
        EXPECT_EQ(fields[f], std::vector<float>(fields[f].size())) << f;
    }
    EXPECT_EQ(running->runtime()->tensor_step(TensorIndex(0)), 0);
  });
}

// A runtime that has loaded half of a model is of no use, and says so; one that has lost values
// that it was to save has saved nothing.
TEST_F(CheckpointRunTest, DamageIsFound) {
  const RanksCase c = Case(1, 0, Where::kStatesOnHost);
  (void)TrainAndSave(c, "a");
  const std::string path = saved_.path() + "/a/rank-00000.safetensors";
  const auto middle = static_cast<std::streamoff>(std::filesystem::file_size(path) / 2);
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(middle);
  const int byte = file.get();
  file.seekp(middle);
  file.put(static_cast<char>(byte ^ 1));
  file.close();
  auto links = std::vector<RankLinks>(1);
  Running running(c, 0, std::move(links[0]));
  (void)running.Load();
  const absl::Status status = running.Do(From("a"));
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status.ToString();
  EXPECT_NE(status.message().find("rank-00000.safetensors"), std::string::npos)
      << status.ToString();
  EXPECT_FALSE(running.runtime()->failure().ok());
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
