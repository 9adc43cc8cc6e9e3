// The power goes after every call that a save, a replacement or a removal makes, and what was not
// synced is lost, torn or done in every combination, or in many where there are too many: what is
// there is always the newest checkpoint that was committed, or the one before, whole.

#include <map>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/offload/saved_model.h"
#include "tests/offload/sim_files.h"

namespace sluice {
namespace {

const std::string kRuns = "runs";

class PowerCuts {
 public:
  explicit PowerCuts(bool can_exchange) : rng_(can_exchange ? 1 : 2) {
    files_.can_exchange = can_exchange;
    model_.tensors = {{"w", 5, 1, FloatType::kBf16, {"master", "exp_avg"}},
                      {"frozen", 6, 0, ElementType::Bytes(), {"param"}},
                      {"empty", 0, 1, FloatType::kF32, {"master"}}};
    CutPieces(&rng_, 2, {.piece_max = 3}, &model_);
    model_.client = "client";
    files_.after_call = [this] { Cut(); };
  }

  SimFiles* files() { return &files_; }
  uint64_t states() const { return states_; }
  bool latest = true;  // names what is saved
  // Commits save `id`; until it has returned, what was there may be there.
  void Save(const std::string& tag, uint64_t id, const std::string& frozen_from = "") {
    SavedModel model = model_;
    model.values = id;
    model.tensors[0].step = id;
    saved_[id] = model;
    allowed_.insert(id);
    bool linked = false;
    const absl::Status status =
        SaveModel(&files_, {kRuns, tag, id}, model,
                  frozen_from.empty() ? "" : kRuns + "/" + frozen_from, &linked, latest);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(linked, !frozen_from.empty());
    allowed_ = {id};
    none_ = false;
    Cut();
  }
  void Prune(uint32_t keep, std::vector<std::string> removed) {
    const auto pruned = PruneCheckpoints(&files_, kRuns, keep, 0);
    ASSERT_TRUE(pruned.ok()) << pruned.status();
    EXPECT_EQ(*pruned, removed);
    Cut();
  }
  // A save that ends before its commit.
  void SaveAndAbandon(const std::string& tag, uint64_t id) {
    ASSERT_TRUE(SaveRank(&files_, {kRuns, tag, id}, model_, 0, "", nullptr).ok());
    const absl::Status abandoned = AbandonCheckpoint(&files_, {kRuns, tag, id});
    EXPECT_TRUE(abandoned.ok()) << abandoned;
  }

 private:
  void Cut() {
    constexpr uint64_t kMost = 200, kDrawn = 14;
    // All combinations, if they are few: the chooser counts through them.
    std::vector<int> digits, kinds;
    for (uint64_t n = 0; n < kMost; ++n) {
      size_t i = 0;
      const auto after = files_.AfterPowerCut([&](int of) {
        if (i == digits.size()) digits.push_back(0), kinds.push_back(of);
        return digits[i++];
      });
      if (n == 0 && files_.unsynced() > 7) break;
      Check(after.get());
      i = 0;
      while (i < digits.size() && ++digits[i] == kinds[i]) digits[i++] = 0;
      if (i == digits.size()) return;
    }
    for (uint64_t n = 0; n < kDrawn; ++n)
      Check(files_
                .AfterPowerCut([&](int of) {
                  return n < 2 ? static_cast<int>(n) : static_cast<int>(Draw(&rng_, 0, of - 1));
                })
                .get());
  }

  void Check(SimFiles* files) {
    ++states_;
    const auto found = ListCheckpoints(files, kRuns);
    if (!found.ok() || found->empty()) {
      ASSERT_TRUE(none_) << "no checkpoint is left: " << found.status();
    }
    // Whatever is seen is whole.
    for (const CheckpointSummary& one : found.ok() ? *found : std::vector<CheckpointSummary>()) {
      ASSERT_TRUE(one.status.ok()) << one.status;
      ASSERT_EQ(saved_.count(one.id), 1u);
      CheckSame(files, one.tag, {one.id});
    }
    if (found.ok() && !found->empty()) CheckSame(files, "", allowed_);
    if (states_ % 16 != 0) return;
    // And work goes on.
    files->can_exchange = true;
    SavedModel next = model_;
    next.values = 1000;
    const absl::Status saved = SaveModel(files, {kRuns, "next", 1000}, next);
    ASSERT_TRUE(saved.ok()) << saved;
    saved_[1000] = next;
    CheckSame(files, "", {1000});
    const auto pruned = PruneCheckpoints(files, kRuns, 1, 0);
    ASSERT_TRUE(pruned.ok()) << pruned.status();
    ASSERT_THAT(*files->List(kRuns), testing::ElementsAre("latest", "next"));
    CheckSame(files, "", {1000});
  }

  void CheckSame(SimFiles* files, const std::string& tag, const std::set<uint64_t>& allowed) {
    auto reader = CheckpointReader::Open(files, kRuns, tag);
    ASSERT_TRUE(reader.ok()) << reader.status();
    const uint64_t id = (*reader)->summary().id;
    ASSERT_EQ(allowed.count(id), 1u) << "save " << id << " is opened";
    absl::Status error;
    ASSERT_EQ(Difference(reader->get(), saved_[id], 4, &error), "");
    ASSERT_TRUE(error.ok()) << error;
  }

  Rng rng_;
  SimFiles files_;
  SavedModel model_;
  std::map<uint64_t, SavedModel> saved_;
  std::set<uint64_t> allowed_;
  bool none_ = true;
  uint64_t states_ = 0;
};

class CheckpointCrash : public testing::TestWithParam<bool> {
 protected:
  // What a test reaches without a failure goes on; the first failure ends its cuts.
  void TearDown() override {
    states += cuts.states();
    RecordProperty("states", static_cast<int>(cuts.states()));
  }
  static void TearDownTestSuite() {
    EXPECT_GE(states, 10'000u);
    fmt::print("{} states were tried\n", states);
  }
  static inline uint64_t states = 0;
  PowerCuts cuts{GetParam()};
};

TEST_P(CheckpointCrash, OfFirstAndSecondSave) {
  cuts.Save("a", 1);
  cuts.Save("b", 2);
}

TEST_P(CheckpointCrash, OfOneThatReplacesItsTag) {
  cuts.Save("a", 1);
  cuts.Save("a", 2);
  cuts.Save("a", 3);
}

TEST_P(CheckpointCrash, OfLinkedFrozenValuesAndRemoval) {
  cuts.Save("a", 1);
  cuts.Save("b", 2, "a");
  cuts.Prune(1, {"a"});
  cuts.Save("c", 3, "b");
  cuts.Save("c", 4, "c");
  cuts.Prune(1, {"b"});
}

TEST_P(CheckpointCrash, OfSavesThatAreAbandoned) {
  cuts.Save("a", 1);
  cuts.SaveAndAbandon("a", 2);
  cuts.SaveAndAbandon("b", 3);
  cuts.Save("a", 4);
}

TEST_P(CheckpointCrash, OfSavesThatLatestDoesNotName) {
  cuts.latest = false;
  cuts.Save("a", 1);
  cuts.Save("b", 2, "a");
  cuts.Save("a", 3, "b");
}

INSTANTIATE_TEST_SUITE_P(AllFiles, CheckpointCrash, testing::Bool(),
                         [](const auto& info) { return info.param ? "Exchange" : "NoExchange"; });

}  // namespace
}  // namespace sluice
