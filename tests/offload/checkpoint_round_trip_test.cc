// What is saved by some ranks in some pieces is what is read in others, over real files and
// simulated ones.

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/offload/saved_model.h"
#include "tests/offload/sim_files.h"

namespace sluice {
namespace {

void ExpectSame(Files* files, const std::string& directory, const std::string& tag,
                const SavedModel& model, int64_t step) {
  auto reader = CheckpointReader::Open(files, directory, tag);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ((*reader)->note(), "");
  absl::Status error;
  EXPECT_EQ(Difference(reader->get(), model, step, &error), "");
  EXPECT_TRUE(error.ok()) << error;
  uint64_t heard = 0;
  const absl::Status verified = (*reader)->Verify([&heard](uint64_t bytes) {
    EXPECT_GE(bytes, heard);
    heard = bytes;
    return true;
  });
  EXPECT_TRUE(verified.ok()) << verified;
  uint64_t values = 0;
  for (uint32_t t = 0; t < model.tensors.size(); ++t)
    for (uint32_t f = 0; f < model.tensors[t].fields.size(); ++f)
      values += static_cast<uint64_t>(model.tensors[t].elements * ElementSize(model.tensors[t], f));
  EXPECT_GE(heard, values);
  EXPECT_LE(heard, (*reader)->summary().bytes);
}

TEST(CheckpointRoundTrip, OfAnyModelByAnyRanksInAnyPieces) {
  for (uint64_t seed = 0; seed < 120; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    SimFiles files;
    const SavedModel model = RandomModel(&rng, Draw(&rng, 1, 4));
    const absl::Status saved = SaveModel(&files, {"runs", "step7", seed + 1}, model);
    ASSERT_TRUE(saved.ok()) << saved;
    ExpectSame(&files, "runs", "", model, Draw(&rng, 1, 2) == 1 ? 10'000 : Draw(&rng, 50, 5000));
    const auto found = ListCheckpoints(&files, "runs");
    ASSERT_TRUE(found.ok() && found->size() == 1);
    EXPECT_EQ(found->front().tag, "step7");
    EXPECT_EQ(found->front().id, seed + 1);
    EXPECT_EQ(found->front().ranks, model.pieces.size());
    EXPECT_TRUE(found->front().status.ok());
  }
}

// The file is one of safetensors: its tensors, by name, lie one after the other from a multiple of
// 8 on to the file's end, each at a multiple of its elements' size. Returns how many elements it
// has.
int64_t ElementsOf(const std::string& bytes) {
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  EXPECT_EQ(length % 8, 0u);
  const auto header =
      nlohmann::ordered_json::parse(bytes.substr(sizeof(length), length), nullptr, false);
  EXPECT_FALSE(header.is_discarded());
  EXPECT_EQ(header["__metadata__"]["format"], "pt");
  const std::map<std::string, uint64_t> sizes = {{"F32", 4}, {"F16", 2}, {"BF16", 2}, {"U8", 1}};
  uint64_t end = 0;
  int64_t all = 0;
  std::set<std::string> names;
  for (const auto& [name, entry] : header.items()) {
    EXPECT_TRUE(names.insert(name).second) << name;
    if (name == "__metadata__") continue;
    const auto elements = entry["shape"][0].get<int64_t>();
    const uint64_t size = sizes.at(entry["dtype"]);
    EXPECT_EQ(entry["shape"].size(), 1u);
    EXPECT_GT(elements, 0);
    EXPECT_EQ(entry["data_offsets"][0], end);
    EXPECT_EQ(end % size, 0u);
    end += static_cast<uint64_t>(elements) * size;
    EXPECT_EQ(entry["data_offsets"][1], end);
    all += elements;
  }
  EXPECT_EQ(sizeof(length) + length + end, bytes.size());
  return all;
}

TEST(CheckpointRoundTrip, IsInFilesThatOthersRead) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    SimFiles files;
    const SavedModel model = RandomModel(&rng, Draw(&rng, 1, 3));
    ASSERT_TRUE(SaveModel(&files, {"runs", "a", seed + 1}, model).ok());
    int64_t saved = 0, found = 0;
    for (const std::string& path : files.AllFiles())
      if (path.ends_with(".safetensors")) found += ElementsOf(*files.BytesOf(path));
    for (const SavedTensor& tensor : model.tensors)
      saved += tensor.elements * static_cast<int64_t>(tensor.fields.size());
    EXPECT_EQ(found, saved);
  }
}

class RealDirectory {
 public:
  RealDirectory() {
    std::string name = testing::TempDir() + "checkpoint-XXXXXX";
    path_ = mkdtemp(name.data());
  }
  RealDirectory(const RealDirectory&) = delete;
  RealDirectory& operator=(const RealDirectory&) = delete;
  ~RealDirectory() { std::filesystem::remove_all(path_); }
  std::string path() const { return path_; }

 private:
  std::string path_;
};

TEST(CheckpointRoundTrip, OverRealFilesSavedAgainAndAgain) {
  const RealDirectory directory;
  const std::string runs = directory.path() + "/runs";
  Rng rng(5);
  SavedModel model =
      RandomModel(&rng, 2, {.tensors_max = 9, .elements_max = 300'000, .piece_max = 100'000});
  std::string before;
  for (uint64_t id = 1; id < 6; ++id) {
    SCOPED_TRACE(id);
    model.values = id;
    const std::string tag = id == 4 ? "step3" : fmt::format("step{}", id);  // once the same again
    const absl::Status saved = SaveModel(RealFiles(), {runs, tag, id}, model, before);
    ASSERT_TRUE(saved.ok()) << saved;
    ExpectSame(RealFiles(), runs, "", model, 1 << 20);
    before = runs + "/" + tag;
  }
  const auto removed = PruneCheckpoints(RealFiles(), runs, 2, 0);
  ASSERT_TRUE(removed.ok()) << removed.status();
  EXPECT_THAT(*removed, testing::ElementsAre("step1", "step2"));
  EXPECT_THAT(*RealFiles()->List(runs), testing::ElementsAre("latest", "step3", "step5"));
  ExpectSame(RealFiles(), runs, "", model, 77'777);
}

}  // namespace
}  // namespace sluice
