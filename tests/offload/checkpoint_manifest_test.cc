// Manifests that somebody has made up, whose checksum is right: what can't be is refused in words.
// And what a writer refuses.

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "offload/checkpoint/manifest_text.h"
#include "offload/checkpoint/names.h"
#include "offload/checkpoint/seal.h"
#include "tests/offload/saved_model.h"
#include "tests/offload/sim_files.h"

namespace sluice {
namespace {

using testing::HasSubstr;

struct Change {
  std::string from, to;
};

// `text` with its first `from` changed, and sealed again.
std::string Changed(std::string text, const Change& change) {
  text.resize(text.rfind("\"checksum\""));
  const size_t at = text.find(change.from);
  EXPECT_NE(at, std::string::npos) << change.from;
  text.replace(at, change.from.size(), change.to);
  Seal(&text);
  return text;
}

PartText SomePart() {
  PartText text;
  text.part = {.id = 5,
               .ranks = 2,
               .frozen_id = 4,
               .tensors = {{"w\"1", 100, 7, FloatType::kBf16, {"master", "exp_avg"}},
                           {"frozen", 9, 0, ElementType::Bytes(), {"param"}}},
               .pieces = {{0, 0, 0, 60}, {0, 1, 0, 60}, {1, 0, 0, 9}},
               .checksums = {1, 2, 3},
               .attachments = {{"client.json", 12, 6}}};
  text.tensors_checksum = ChecksumOf(TensorRows(text.part.tensors));
  text.data = {PartText::DataFile{64, 8, 480}, PartText::DataFile{64, 9, 9}};
  return text;
}

TEST(CheckpointManifest, IsReadAsItWasWritten) {
  const PartText part = SomePart();
  const std::string text = TextOf(part, TensorRows(part.part.tensors));
  const auto read = ParsePart(text, "it");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(TextOf(*read, TensorRows(read->part.tensors)), text);
  EXPECT_EQ(read->part.tensors, part.part.tensors);
  EXPECT_EQ(read->part.pieces, part.part.pieces);
  EXPECT_EQ(read->part.checksums, part.part.checksums);
  const IndexText index{.id = 5,
                        .sequence = 3,
                        .steps = 7,
                        .saved_at = 8,
                        .parts = {{100, 1}, {200, UINT64_MAX}},
                        .files = {{"rank-00000.x", 5}}};
  const auto index_read = ParseIndex(TextOf(index), "it");
  ASSERT_TRUE(index_read.ok()) << index_read.status();
  EXPECT_EQ(TextOf(*index_read), TextOf(index));
}

TEST(CheckpointManifest, OfAPartRefusesWhatCannotBe) {
  const PartText part = SomePart();
  const std::string text = TextOf(part, TensorRows(part.part.tensors));
  const Change changes[] = {
      {"\"rank\":0", "\"rank\":2"},
      {"\"rank\":0", "\"rank\":-1"},
      {"\"rank\":0", "\"rank\":0.0"},
      {"\"rank\":0", "\"rank\":\"0\""},
      {"\"rank\":0", "\"rank\":null"},
      {"\"rank\":0", "\"rank\":true"},
      {"\"rank\":0", "\"rank\":[]"},
      {"\"rank\":0", "\"rank\":{}"},
      {"\"rank\":0,", ""},
      {"\"rank\":0", "\"rank\":0,\"rank\":0"},
      {"\"rank\":0", "\"rank\":0,\"new\":0"},
      {"\"ranks\":2", "\"ranks\":0"},
      {"\"ranks\":2", "\"ranks\":70000"},
      {"\"ranks\":2", "\"ranks\":1e99"},
      {"\"ranks\":2", "\"ranks\":99999999999999999999999"},
      {"0000000000000005", "000000000000005"},
      {"0000000000000005", "000000000000000G"},
      {"[64,", "[-64,"},
      {"[64,", "[[64],"},
      {"[64,\"0000000000000008\",480]", "64"},
      {"[64,\"0000000000000008\",480],", ""},
      {"480]", "480],[1,\"0000000000000008\",2]"},
      {"480]", "480,1]"},
      {"\"client.json\"", "\"../client\""},
      {"\"client.json\"", "\"a/b\""},
      {"\"client.json\"", "\"safetensors\""},
      {"\"client.json\"", "\"\""},
      {"\"client.json\"", "\"a\\u0000b\""},
      {"12,", "2e3,"},
      {"[\"client.json\",12,\"0000000000000006\"]",
       "[\"client.json\",12,\"0000000000000006\"],[\"client.json\",12,\"0000000000000006\"]"},
      {",100,7", ",281474976710657,7"},
      {",100,7", ",-1,7"},
      {"\"bf16\"", "\"int8\""},
      {"\"master\"", "\"mas/ter\""},
      {"\"master\"", "\"\""},
      {"\"master\"", "\"param\""},
      {"\"master\"", "\"exp_avg\""},
      {",\"master\",\"exp_avg\"", ""},
      {"\"frozen\"", "\"w\\\"1\""},
      {"\"frozen\"", "\"/frozen\""},
      {"\"frozen\"", "\"frozen/\""},
      {"\"frozen\"", "\"\\u0001\""},
      {"\"frozen\"", "\"\xff\""},
      {",100,7", ",100,8"},
      {"[0,0,0,60,", "[0,0,0,1048577,"},
      {"[0,0,0,60,", "[4294967296,0,0,60,"},
      {"[0,0,0,60,", "[0,0,60,"},
      {"[0,0,0,60,", "[0,[],0,0,60,"},
      {"\"pieces\":[", "\"pieces\":[\"0\","},
      {"\"pieces\":[", "\"pieces\":{"},
      {"\"data\":[", "\"data\":[[[[[[[[[["},
      {"\"id\"", "\"\xff\""},
  };
  for (const Change& change : changes) {
    SCOPED_TRACE(change.from + " -> " + change.to);
    const auto read = ParsePart(Changed(text, change), "it");
    ASSERT_FALSE(read.ok());
    EXPECT_TRUE(absl::IsDataLoss(read.status())) << read.status();
    EXPECT_THAT(std::string(Message(read.status())), testing::StartsWith("it: "));
  }
  // What isn't sealed again.
  for (const auto& [from, to, says] :
       std::vector<std::tuple<std::string, std::string, std::string>>{
           {",100,7", ",100,8", "changed by hand"},
           {"\"version\":1", "\"version\":2", "of version 2, and this Sluice reads version 1"},
           {"sluice checkpoint part", "sluice checkpoint", "not a sluice checkpoint part"},
           {"\"}\n", "\"}", "cut off"}}) {
    std::string other = text;
    other.replace(other.rfind(from), from.size(), to);
    EXPECT_THAT(std::string(Message(ParsePart(other, "it").status())), HasSubstr(says));
  }
  for (size_t size = 0; size < text.size(); ++size)
    EXPECT_FALSE(ParsePart(text.substr(0, size), "it").ok());
}

TEST(CheckpointManifest, OfAllRefusesWhatCannotBe) {
  const IndexText index{
      .id = 5, .sequence = 3, .parts = {{100, 1}}, .files = {{"rank-00000.x", 5}}};
  for (const Change& change : std::vector<Change>{{"rank-00000.x", "../x"},
                                                  {"rank-00000.x", "checkpoint.json"},
                                                  {"rank-00000.x", "x"},
                                                  {"rank-00000.x", "rank-00000./x"},
                                                  {"rank-00000.x", "rank-00000."},
                                                  {"[100,\"0000000000000001\"]", ""},
                                                  {"[100,", "[1152921504606846977,"},
                                                  {",5]", ",-5]"},
                                                  {"\"sequence\":3,", ""},
                                                  {"\"sequence\":3", "\"sequence\":3.5"},
                                                  {",5]", "]"},
                                                  {"[100,", "[100,1,"}})
    EXPECT_TRUE(absl::IsDataLoss(ParseIndex(Changed(TextOf(index), change), "it").status()))
        << change.from << " -> " << change.to;
}

TEST(CheckpointManifest, IsNotBegunWithWhatCannotBeSaved) {
  SimFiles files;
  const SavedPart good{.tensors = {{"w", 100, 7, FloatType::kF32, {"master", "exp_avg"}}},
                       .pieces = {{0, 0, 0, 60}}};
  const auto begin = [&files](const std::string& tag, const SavedPart& part, uint64_t id = 1) {
    const auto writer = CheckpointWriter::Begin(&files, {"runs", tag, id}, part, "");
    return writer.ok() ? absl::OkStatus() : writer.status();
  };
  for (const std::string& tag :
       {std::string(), std::string("a/b"), std::string("."), std::string(".a"), std::string(".."),
        std::string(201, 'a'), std::string("latest"), std::string("a\nb"), std::string("\xff")})
    EXPECT_TRUE(absl::IsInvalidArgument(begin(tag, good))) << tag;
  EXPECT_TRUE(absl::IsInvalidArgument(begin("a", good, 0)));
  const auto refused = [&](auto change) {
    SavedPart part = good;
    change(&part);
    EXPECT_TRUE(absl::IsInvalidArgument(begin("a", part)));
  };
  refused([](SavedPart* p) { p->rank = 1; });
  refused([](SavedPart* p) { p->ranks = 0; });
  refused([](SavedPart* p) { p->tensors.push_back(p->tensors[0]); });
  for (const char* name : {"", "/w", "w/", "w\n", "\xc3"})
    refused([&](SavedPart* p) { p->tensors[0].name = name; });
  refused([](SavedPart* p) { p->tensors[0].elements = -1; });
  refused([](SavedPart* p) { p->tensors[0].fields = {"a/b"}; });
  refused([](SavedPart* p) { p->tensors[0].fields.assign(17, "f"); });
  refused([](SavedPart* p) { p->tensors[0].fields = {"param", "exp_avg"}; });
  for (const SavedPiece& piece : std::vector<SavedPiece>{{1, 0, 0, 1},
                                                         {0, 2, 0, 1},
                                                         {0, 0, -1, 1},
                                                         {0, 0, 0, 0},
                                                         {0, 0, 99, 2},
                                                         {0, 0, 59, 1},
                                                         {0, 0, 0, 60},
                                                         {0, 0, INT64_MAX, 1}})
    refused([&](SavedPart* p) { p->pieces.push_back(piece); });
  EXPECT_TRUE(files.AllFiles().empty());

  auto writer = CheckpointWriter::Begin(&files, {"runs", "a", 1}, good, "nowhere");
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::vector<std::byte> bytes(240);
  EXPECT_TRUE(absl::IsInvalidArgument((*writer)->Finish()));
  EXPECT_TRUE(absl::IsInvalidArgument((*writer)->Write(1, bytes)));
  EXPECT_TRUE(absl::IsInvalidArgument((*writer)->Write(0, ConstMemoryView(bytes).first(239))));
  EXPECT_TRUE((*writer)->Write(0, bytes).ok());
  EXPECT_TRUE(absl::IsInvalidArgument((*writer)->Write(0, bytes)));
  for (const char* name : {"", "a/b", ".a", "safetensors", "frozen.safetensors", "json", "\n"})
    EXPECT_TRUE(absl::IsInvalidArgument((*writer)->Attach(name, bytes))) << name;
  EXPECT_TRUE((*writer)->Attach("x", bytes).ok());
  EXPECT_TRUE(absl::IsInvalidArgument((*writer)->Attach("x", bytes)));
  EXPECT_TRUE((*writer)->Finish().ok());
  // The rest of `w` was saved by nobody.
  const absl::Status committed = CommitCheckpoint(&files, {"runs", "a", 1}, false);
  EXPECT_TRUE(absl::IsDataLoss(committed)) << committed;
  EXPECT_THAT(committed.message(), testing::HasSubstr("element 60 of w/master"));
  EXPECT_TRUE(absl::IsNotFound(CheckpointReader::Open(&files, "runs", "a").status()));
}

// Two ranks that say different things of the model, or have both saved an element.
TEST(CheckpointManifest, OfRanksThatDifferIsNotCommitted) {
  for (const bool same_piece : {false, true}) {
    SimFiles files;
    for (uint32_t rank = 0; rank < 2; ++rank) {
      SavedPart part{
          .rank = rank,
          .ranks = 2,
          .tensors = {{"w", 100, same_piece ? 7 : 7 + rank, FloatType::kF32, {"master"}}},
          .pieces = {{0, 0, same_piece ? 30 * rank : 60 * rank, 40}}};
      auto writer = CheckpointWriter::Begin(&files, {"runs", "a", 1}, part, "");
      ASSERT_TRUE(writer.ok()) << writer.status();
      ASSERT_TRUE((*writer)->Write(0, std::vector<std::byte>(160)).ok());
      ASSERT_TRUE((*writer)->Finish().ok());
    }
    const absl::Status commit = CommitCheckpoint(&files, {"runs", "a", 1}, true);
    EXPECT_TRUE(absl::IsDataLoss(commit)) << commit;
    EXPECT_THAT(std::string(Message(commit)),
                HasSubstr(same_piece ? "both saved element 30 of w/master" : "another model"));
    EXPECT_FALSE(files.Has("runs/a"));
  }
}

}  // namespace
}  // namespace sluice
