// Every call of Files fails, once and from then on, with every error: the save says so, what was
// there is there, and nothing is left of it.

#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/offload/saved_model.h"
#include "tests/offload/sim_files.h"

namespace sluice {
namespace {

const std::string kRuns = "runs";

struct Case {
  const char* name;
  std::string tag;
  std::string frozen_from;
  bool can_exchange;
};

class CheckpointFaults : public testing::TestWithParam<Case> {
 protected:
  CheckpointFaults() {
    model.tensors = {{"w", 9, 1, FloatType::kF32, {"master", "exp_avg"}},
                     {"frozen", 6, 0, FloatType::kF16, {"param"}}};
    CutPieces(&rng, 2, {.piece_max = 5}, &model);
    model.client = "client";
    model.values = 1;
    base.can_exchange = GetParam().can_exchange;
    EXPECT_TRUE(SaveModel(&base, {kRuns, "a", 1}, model).ok());
    saved[1] = model;
    model.values = 2;
    saved[2] = model;
  }

  // Which save is opened, after it was found to be whole.
  uint64_t Opened(SimFiles* files) {
    auto reader = CheckpointReader::Open(files, kRuns, "");
    EXPECT_TRUE(reader.ok()) << reader.status();
    if (!reader.ok()) return 0;
    const uint64_t id = (*reader)->summary().id;
    absl::Status error;
    EXPECT_EQ(Difference(reader->get(), saved[id], 5, &error), "");
    EXPECT_TRUE(error.ok()) << error;
    return id;
  }

  void ExpectWhole(SimFiles* files, const absl::Status& status) {
    const uint64_t id = Opened(files);
    const bool there = status.ok() || Message(status).find("is there") != std::string_view::npos;
    const bool either = Message(status).find("may be the new") != std::string_view::npos;
    const bool has_new = files->Has(kRuns + "/b") || GetParam().tag == "a";
    if (status.ok()) {
      EXPECT_EQ(id, 2u);
    } else if (!there && !either) {
      EXPECT_EQ(id, 1u);
    } else {
      EXPECT_TRUE(id == 1 || (id == 2 && has_new)) << id;
    }
  }

  Rng rng{7};
  SavedModel model;
  SimFiles base;
  std::map<uint64_t, SavedModel> saved;
};

TEST_P(CheckpointFaults, LeaveWhatWasThere) {
  const Case& of = GetParam();
  const CheckpointPlace place{kRuns, of.tag, 2};
  uint64_t tried = 0, failed = 0;
  const absl::Status errors[] = {absl::ResourceExhaustedError("full"),
                                 absl::UnavailableError("input/output error"),
                                 absl::PermissionDeniedError("read only"),
                                 absl::NotFoundError("gone"), absl::AlreadyExistsError("there")};
  for (const bool persistently : {false, true})
    for (const absl::Status& error : errors)
      for (uint64_t n = 1;; ++n) {
        SCOPED_TRACE(testing::Message() << error << " at call " << n << ", on " << persistently);
        const auto files = base.Copy();
        files->fail_at = n;
        files->persistently = persistently;
        files->error = error;
        const absl::Status status = SaveModel(files.get(), place, model, of.frozen_from);
        files->fail_at = 0;
        if (files->calls < n) {
          EXPECT_TRUE(status.ok()) << status;
          break;
        }
        ++tried;
        failed += status.ok() ? 0 : 1;
        if (!status.ok()) {
          // What has happened until now may be lost, too.
          ExpectWhole(
              files->AfterPowerCut([this](int k) { return static_cast<int>(Draw(&rng, 0, k - 1)); })
                  .get(),
              absl::UnavailableError("may be the new"));
          const absl::Status abandoned = AbandonCheckpoint(files.get(), place);
          EXPECT_TRUE(abandoned.ok()) << abandoned;
        }
        ExpectWhole(files.get(), status);
        for (int cut = 0; cut < 4; ++cut)
          ExpectWhole(files
                          ->AfterPowerCut([&](int k) {
                            return cut < 2 ? cut : static_cast<int>(Draw(&rng, 0, k - 1));
                          })
                          .get(),
                      status.ok() ? status : absl::UnavailableError("may be the new"));
        // Only what was replaced may be left hidden, and only until it is pruned.
        const auto pruned = PruneCheckpoints(files.get(), kRuns, 9, 0);
        ASSERT_TRUE(pruned.ok()) << pruned.status();
        EXPECT_THAT(*files->List(kRuns), testing::Each(testing::Not(testing::StartsWith("."))));
        ExpectWhole(files.get(), status);
        if (HasFailure()) return;
      }
  EXPECT_GT(failed, 200u);
  EXPECT_GT(tried, failed);
}

TEST_P(CheckpointFaults, OfAbandonedSavesLeaveNothing) {
  const auto files = base.Copy();
  const CheckpointPlace place{kRuns, GetParam().tag, 2};
  const std::vector<std::string> before = files->AllFiles();
  ASSERT_TRUE(SaveRank(files.get(), place, model, 0, GetParam().frozen_from, nullptr).ok());
  const absl::Status early = CommitCheckpoint(files.get(), place, true);  // rank 1 hasn't finished
  EXPECT_TRUE(absl::IsDataLoss(early)) << early;
  EXPECT_THAT(std::string(Message(early)), testing::HasSubstr("rank-00001.json"));
  EXPECT_TRUE(AbandonCheckpoint(files.get(), place).ok());
  EXPECT_EQ(files->AllFiles(), before);
  EXPECT_EQ(files->List(kRuns)->size(), 2u);
  EXPECT_TRUE(AbandonCheckpoint(files.get(), place).ok());
}

INSTANTIATE_TEST_SUITE_P(AllWays, CheckpointFaults,
                         testing::Values(Case{"AnotherTag", "b", "", true},
                                         Case{"TheSameTag", "a", "", true},
                                         Case{"MovedAside", "a", "", false},
                                         Case{"Linked", "b", "runs/a", true}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace sluice
