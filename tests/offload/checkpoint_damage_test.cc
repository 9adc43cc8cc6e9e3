// Checkpoints that were damaged after they were saved: it is found when they are opened, read or
// verified, and never gives wrong values.

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/offload/saved_model.h"
#include "tests/offload/sim_files.h"

namespace sluice {
namespace {

using testing::HasSubstr;

std::string Text(const absl::Status& status) { return std::string(Message(status)); }

class CheckpointDamage : public testing::Test {
 protected:
  CheckpointDamage() {
    old_model = RandomModel(&rng, 2, {.tensors_max = 0});
    old_model.tensors = {{"w", 700, 3, FloatType::kBf16, {"master", "exp_avg"}},
                         {"frozen", 300, 0, FloatType::kF16, {"param"}},
                         {"bytes", 77, 0, ElementType::Bytes(), {"param"}},
                         {"small", 1, 3, FloatType::kF32, {"master"}}};
    CutPieces(&rng, 2, {.piece_max = 200}, &old_model);
    old_model.client = "client";
    model = old_model;
    model.values = 2;
    EXPECT_TRUE(SaveModel(&files, {"runs", "a", 1}, old_model).ok());
    EXPECT_TRUE(SaveModel(&files, {"runs", "b", 2}, model).ok());
    for (const std::string& path : files.AllFiles())
      if (path.starts_with("runs/b/")) paths.push_back(path);
  }

  // Of checkpoint b, whatever has become of it. Empty: nothing was found, and nothing is wrong.
  absl::Status Found() {
    auto reader = CheckpointReader::Open(&files, "runs", "b");
    if (!reader.ok()) return reader.status();
    absl::Status read;
    EXPECT_EQ(Difference(reader->get(), model, 123, &read), "");
    const absl::Status verified = (*reader)->Verify({});
    EXPECT_TRUE(read.ok() || !verified.ok()) << "reading has found what Verify has not: " << read;
    return verified;
  }
  // Without a tag: the older one, with a word of why, or b.
  void ExpectOneIsOpened() {
    auto reader = CheckpointReader::Open(&files, "runs", "");
    ASSERT_TRUE(reader.ok()) << reader.status();
    absl::Status read;
    const bool is_old = (*reader)->summary().tag == "a";
    EXPECT_EQ((*reader)->note().empty(), !is_old) << (*reader)->note();
    if (is_old) {
      EXPECT_THAT((*reader)->note(), HasSubstr("'a' is loaded"));
      EXPECT_EQ(Difference(reader->get(), old_model, 400, &read), "");
      EXPECT_TRUE(read.ok()) << read;
    }
  }
  // The message names the file, and what can be loaded instead.
  void ExpectFound(const std::string& path) {
    const absl::Status found = Found();
    ASSERT_FALSE(found.ok()) << path;
    EXPECT_THAT(Text(found), HasSubstr("runs/b/"));
    EXPECT_THAT(Text(found), HasSubstr("'a' of 3 steps can be loaded instead"));
    ExpectOneIsOpened();
  }

  SimFiles files;
  SavedModel old_model, model;
  std::vector<std::string> paths;
  Rng rng{11};
};

TEST_F(CheckpointDamage, OfAnyBitIsFound) {
  constexpr int kPlaces = 10'000;
  for (int i = 0; i < kPlaces; ++i) {
    const std::string& path = paths[static_cast<size_t>(i) % paths.size()];
    std::string* const bytes = files.BytesOf(path);
    ASSERT_FALSE(bytes->empty()) << path;
    const auto at = static_cast<size_t>(Draw(&rng, 0, static_cast<int64_t>(bytes->size()) - 1));
    const char was = (*bytes)[at];
    (*bytes)[at] = static_cast<char>(was ^ 1 << Draw(&rng, 0, 7));
    const absl::Status found = Found();
    ASSERT_FALSE(found.ok()) << path << ", byte " << at;
    EXPECT_THAT(Text(found), HasSubstr("runs/b/"));
    if (i % 50 == 0) ExpectOneIsOpened();
    (*bytes)[at] = was;
  }
  EXPECT_TRUE(Found().ok());
}

TEST_F(CheckpointDamage, OfSizesIsFound) {
  ASSERT_EQ(paths.size(), 8u);  // of each rank three, one attachment, the index
  for (const std::string& path : paths) {
    SCOPED_TRACE(path);
    const std::string was = *files.BytesOf(path);
    for (const std::string& now : {was.substr(0, was.size() / 2), was.substr(0, was.size() - 1),
                                   std::string(), was + "\n", was + was}) {
      *files.BytesOf(path) = now;
      ExpectFound(path);
    }
    *files.BytesOf(path) = was;
    ASSERT_TRUE(files.Rename(path, "aside").ok());
    ExpectFound(path);
    EXPECT_THAT(Text(Found()), HasSubstr("no such file"));
    ASSERT_TRUE(files.Rename("aside", path).ok());
  }
  EXPECT_TRUE(Found().ok());
}

TEST_F(CheckpointDamage, OfFilesInEachOthersPlaceIsFound) {
  int swapped = 0;
  for (const std::string& path : paths)
    for (const std::string& other : files.AllFiles()) {
      if (other <= path && other.starts_with("runs/b/")) continue;
      std::string* const a = files.BytesOf(path);
      std::string* const b = files.BytesOf(other);
      if (*a == *b) continue;
      SCOPED_TRACE(path + " and " + other);
      std::swap(*a, *b);
      EXPECT_FALSE(Found().ok());
      std::swap(*a, *b);
      ++swapped;
    }
  EXPECT_GT(swapped, 80);
  EXPECT_TRUE(Found().ok());
}

// The values of an older save, in a file that has the same pieces and the same size.
TEST_F(CheckpointDamage, OfAStaleFileIsFoundByReading) {
  *files.BytesOf("runs/b/rank-00001.safetensors") = *files.BytesOf("runs/a/rank-00001.safetensors");
  auto reader = CheckpointReader::Open(&files, "runs", "b");
  ASSERT_TRUE(reader.ok()) << reader.status();
  absl::Status read;
  EXPECT_EQ(Difference(reader->get(), model, 123, &read), "");
  EXPECT_TRUE(absl::IsDataLoss(read)) << read;
  EXPECT_THAT(Text(read), HasSubstr("rank-00001.safetensors is damaged: elements "));
}

TEST_F(CheckpointDamage, SaysWhatIsThere) {
  const auto open = [this](const std::string& directory, const std::string& tag) {
    const auto reader = CheckpointReader::Open(&files, directory, tag);
    return reader.ok() ? absl::OkStatus() : reader.status();
  };
  EXPECT_TRUE(absl::IsNotFound(open("runs", "c")));
  EXPECT_THAT(Text(open("runs", "c")), HasSubstr("there are: b, a"));
  EXPECT_TRUE(absl::IsNotFound(open("nowhere", "")));
  ASSERT_TRUE(files.MakeDirectory("empty").ok());
  EXPECT_TRUE(absl::IsNotFound(open("empty", "")));
  EXPECT_THAT(Text(open("empty", "")), HasSubstr("no checkpoint in empty"));

  *files.BytesOf("runs/latest") = "c\n";
  EXPECT_THAT((*CheckpointReader::Open(&files, "runs", ""))->note(),
              HasSubstr("names c, which is not there"));
  *files.BytesOf("runs/latest") = "a\n";
  EXPECT_EQ((*CheckpointReader::Open(&files, "runs", ""))->summary().tag, "a");
  *files.BytesOf("runs/latest") = "../a";
  EXPECT_EQ((*CheckpointReader::Open(&files, "runs", ""))->summary().tag, "b");
  *files.BytesOf("runs/latest") = "b";
  files.BytesOf("runs/a/checkpoint.json")->clear();
  files.BytesOf("runs/b/checkpoint.json")->clear();
  EXPECT_TRUE(absl::IsDataLoss(open("runs", "")));
  EXPECT_THAT(Text(open("runs", "")), HasSubstr("checkpoint.json is empty; there is no other"));
  const auto listed = ListCheckpoints(&files, "runs");
  ASSERT_TRUE(listed.ok() && listed->size() == 2);
  for (const CheckpointSummary& one : *listed) EXPECT_THAT(Text(one.status), HasSubstr("empty"));
}

TEST_F(CheckpointDamage, IsNotWhatAWrongCallIs) {
  auto reader = CheckpointReader::Open(&files, "runs", "b");
  ASSERT_TRUE(reader.ok());
  std::vector<std::byte> bytes(4 * 700);
  EXPECT_TRUE((*reader)->Read(0, 1, 0, 700, bytes).ok());
  EXPECT_TRUE((*reader)->Read(0, 0, 700, 0, {}).ok());
  for (const auto& [tensor, field, first, elements] :
       std::vector<std::tuple<uint32_t, uint32_t, int64_t, int64_t>>{{4, 0, 0, 700},
                                                                     {0, 2, 0, 700},
                                                                     {0, 0, 1, 700},
                                                                     {0, 0, -1, 700},
                                                                     {0, 0, 0, 699},
                                                                     {0, 0, 701, -1},
                                                                     {0, 0, INT64_MAX, 700}})
    EXPECT_TRUE(absl::IsInvalidArgument((*reader)->Read(tensor, field, first, elements, bytes)));
  EXPECT_TRUE(absl::IsNotFound((*reader)->Attachment(1, "client.json").status()));
  EXPECT_TRUE(absl::IsNotFound((*reader)->Attachment(2, "client.json").status()));
  uint64_t heard = 0;
  EXPECT_TRUE(absl::IsCancelled((*reader)->Verify([&heard](uint64_t) { return ++heard < 3; })));
  EXPECT_EQ(heard, 3u);
}

}  // namespace
}  // namespace sluice
