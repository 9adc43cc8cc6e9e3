// What is removed of old checkpoints: those, and nothing that is somebody else's.

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/offload/saved_model.h"
#include "tests/offload/sim_files.h"

namespace sluice {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class CheckpointPrune : public testing::Test {
 protected:
  void Save(uint64_t step, const std::string& tag = "") {
    Rng rng(step);
    SavedModel model = RandomModel(&rng, 1, {.tensors_max = 0});
    model.tensors = {{"w", 3, step, FloatType::kF32, {"master"}}};
    CutPieces(&rng, 1, {}, &model);
    const absl::Status saved =
        SaveModel(&files, {"runs", tag.empty() ? fmt::format("s{}", step) : tag, ++id}, model);
    ASSERT_TRUE(saved.ok()) << saved;
  }
  void Put(const std::string& path, const std::string& text = "mine") {
    auto file = files.Create(path, 0);
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE((*file)->Write(0, std::as_bytes(std::span(text))).ok());
  }
  std::vector<std::string> There() { return *files.List("runs"); }

  SimFiles files;
  uint64_t id = 0;
};

TEST_F(CheckpointPrune, KeepsTheLastAndEveryNth) {
  for (uint64_t step = 1; step <= 12; ++step) Save(step);
  EXPECT_THAT(*PruneCheckpoints(&files, "runs", 20, 0), ElementsAre());
  EXPECT_THAT(*PruneCheckpoints(&files, "runs", 3, 4),
              ElementsAre("s1", "s2", "s3", "s5", "s6", "s7", "s9"));
  EXPECT_THAT(There(), ElementsAre("latest", "s10", "s11", "s12", "s4", "s8"));
  EXPECT_THAT(*PruneCheckpoints(&files, "runs", 3, 4), ElementsAre());
  EXPECT_THAT(*PruneCheckpoints(&files, "runs", 1, 0), ElementsAre("s4", "s8", "s10", "s11"));
  EXPECT_THAT(*PruneCheckpoints(&files, "runs", 0, 0), ElementsAre("s12"));
  EXPECT_TRUE(PruneCheckpoints(&files, "nowhere", 1, 0).status().code() ==
              absl::StatusCode::kNotFound);
}

// What was saved last counts, whatever its name and steps.
TEST_F(CheckpointPrune, GoesByTheOrderOfSaves) {
  Save(9, "z");
  Save(3, "m");
  Save(1, "a");
  Save(2, "z");  // again
  EXPECT_THAT(*PruneCheckpoints(&files, "runs", 2, 0), ElementsAre("m"));
  EXPECT_THAT(There(), ElementsAre("a", "latest", "z"));
}

TEST_F(CheckpointPrune, LeavesWhatIsNotOurs) {
  Save(1);
  Save(2);
  ASSERT_TRUE(files.MakeDirectory("runs/global_step5").ok());
  Put("runs/global_step5/mp_rank_00_model_states.pt");
  ASSERT_TRUE(files.MakeDirectory("runs/other").ok());
  Put("runs/other/checkpoint.json", "{}");
  Put("runs/notes.txt");
  Put("runs/.hidden");
  Put("runs/.s1.saving");
  ASSERT_TRUE(files.MakeDirectory("runs/.s1.12.saving").ok());
  const std::vector<std::string> before = There();
  EXPECT_THAT(*PruneCheckpoints(&files, "runs", 1, 0), ElementsAre("s1"));
  std::vector<std::string> after = before;
  std::erase(after, "s1");
  EXPECT_EQ(There(), after);
  EXPECT_TRUE(files.Has("runs/other/checkpoint.json"));
}

TEST_F(CheckpointPrune, LeavesWhatOthersHavePutIntoOne) {
  Save(1);
  Save(2);
  Save(3);
  Put("runs/s1/notes.txt");
  ASSERT_TRUE(files.MakeDirectory("runs/s1/rank-00000.directory").ok());
  const auto pruned = PruneCheckpoints(&files, "runs", 1, 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(pruned.status())) << pruned.status();
  EXPECT_THAT(std::string(Message(pruned.status())),
              HasSubstr("runs/s1 stays, without its checkpoint"));
  EXPECT_THAT(std::string(Message(pruned.status())), HasSubstr("notes.txt, rank-00000.directory"));
  EXPECT_THAT(There(), ElementsAre("latest", "s1", "s3"));
  EXPECT_THAT(*files.List("runs/s1"), ElementsAre("notes.txt", "rank-00000.directory"));
  EXPECT_THAT(*PruneCheckpoints(&files, "runs", 1, 0), ElementsAre());  // says it once
}

TEST_F(CheckpointPrune, RemovesWhatSavesThatDiedHaveLeft) {
  Save(1);
  Rng rng(1);
  SavedModel model = RandomModel(&rng, 1);
  ASSERT_TRUE(SaveRank(&files, {"runs", "s2", 77}, model, 0, "", nullptr).ok());
  Put("runs/.latest.000000000000004d.saving", "s2");
  EXPECT_EQ(There().size(), 4u);
  EXPECT_THAT(*PruneCheckpoints(&files, "runs", 5, 0), ElementsAre());
  EXPECT_THAT(There(), ElementsAre("latest", "s1"));
}

// Also by the one that replaces it.
TEST_F(CheckpointPrune, OfOneThatIsReplacedTakesAlongWhatOthersPutIntoIt) {
  for (const bool can_exchange : {true, false}) {
    files.can_exchange = can_exchange;
    Save(1, "same");
    if (can_exchange) Put("runs/same/notes.txt");
    Save(2, "same");
    EXPECT_THAT(There(), ElementsAre("latest", "same"));
    EXPECT_TRUE(files.Has("runs/same/notes.txt"));
  }
  ASSERT_TRUE(files.MakeDirectory("runs/theirs").ok());
  Put("runs/theirs/notes.txt");
  Save(3, "theirs");
  EXPECT_TRUE(files.Has("runs/theirs/notes.txt"));
  Put("runs/file");
  const absl::Status saved = SaveModel(&files, {"runs", "file", 99}, {.pieces = {{}}});
  EXPECT_TRUE(absl::IsFailedPrecondition(saved)) << saved;
  EXPECT_EQ(*files.BytesOf("runs/file"), "mine");
}

}  // namespace
}  // namespace sluice
