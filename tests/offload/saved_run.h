// tests/offload/saved_run.h
//
// Runtimes that are saved and loaded, and what there is of them.

#ifndef SLUICE_TESTS_OFFLOAD_SAVED_RUN_H_
#define SLUICE_TESTS_OFFLOAD_SAVED_RUN_H_

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "offload/run/checkpoint_job.h"
#include "tests/nvme/temp_dir.h"
#include "tests/offload/ranks_fixture.h"

namespace sluice::testing {

inline constexpr Field kFields[] = {Field::kMaster, Field::kExpAvg, Field::kExpAvgSq};

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
        (void)Micro(step, micro);
      if (status_.ok()) (void)Step();
    }
    return status_;
  }
  absl::Status Micro(int step, int micro) { return Note(trainer_->MicroStep(step, micro)); }
  absl::Status Step() {
    return Note(trainer_->Wait(
        runtime_->Step({.groups = case_.training.groups, .clip_norm = case_.training.clip_norm})));
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
  absl::Status Close() {
    trainer_.reset();
    return OffloadRuntime::Close(std::move(runtime_));
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
inline void OnEachRank(const RanksCase& c, const std::function<void(uint32_t, Running*)>& f) {
  auto links = c.ranks > 1 ? LinkRanks(c.ranks, c.behind_link) : std::vector<RankLinks>(1);
  OnRanks(c.ranks, [&](uint32_t r) {
    Running running(c, r, std::move(links[r]));
    EXPECT_TRUE(running.status().ok()) << running.status().ToString();
    f(r, &running);
    EXPECT_TRUE(running.status().ok()) << "rank " << r << ": " << running.status().ToString();
  });
}

class SavedRunTest : public ::testing::Test {
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
      EXPECT_TRUE(saved.steps.empty() || (saved == first && later == second)) << "ranks differ";
      saved = std::move(first);
      later = std::move(second);
    });
    return {saved, later};
  }

  TempDir swap_;
  TempDir saved_;
  uint64_t id_ = 0;
};

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_OFFLOAD_SAVED_RUN_H_
