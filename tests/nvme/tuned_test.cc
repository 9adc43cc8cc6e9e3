// Files of tuned settings: what is written is what is read, whatever is wrong is refused by file
// and key, and what holds for which drives.

#include "nvme/tuned.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/file_bytes.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "nvme/tuned_use.h"
#include "tests/nvme/temp_dir.h"

namespace sluice {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Json = nlohmann::ordered_json;

TunedSettings SettingsOf(uint32_t depth, double rate) {
  return {.request = KiB(512),
          .depth = depth,
          .batch = 2,
          .engine = IoEngineKind::kIoUring,
          .read_rate = rate,
          .write_rate = rate / 2,
          .mixed_rate = rate / 1.5};
}

Tuned Example() {
  const auto path = [](const char* at, const char* serial, uint32_t depth, double rate) {
    return Tuned::Path{.drive = {.path = at,
                                 .file_system = "ext4",
                                 .device = "nvme0n1",
                                 .model = "A model",
                                 .serial = serial,
                                 .size = Bytes(1'000'204'886'016)},
                       .settings = SettingsOf(depth, rate)};
  };
  return {.machine = {.host = "box", .cpu = "A CPU", .kernel = "6.1.0"},
          .paths = {path("/mnt/a", "1", 16, 4e9), path("/mnt/b", "2", 8, 1e9),
                    path("/mnt/c", "3", 32, 2e9)},
          .set = SettingsOf(48, 7e9)};
}

TEST(TunedTest, WhatIsWrittenIsRead) {
  Tuned tuned = Example();
  for (const IoEngineKind engine :
       {IoEngineKind::kIoUring, IoEngineKind::kLibaio, IoEngineKind::kThreads}) {
    tuned.set.engine = engine;
    tuned.set.read_rate = 1e9 / 3;
    const auto again = ParseTuned(TunedText(tuned), "it");
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(*again, tuned);
  }
  tuned.paths[1].drive.device = tuned.paths[1].drive.model = tuned.paths[1].drive.serial = "";
  tuned.paths[1].drive.size = Bytes(0);
  const auto again = ParseTuned(TunedText(tuned), "it");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*again, tuned);
  EXPECT_TRUE(Json::parse(TunedText(tuned))["paths"][1]["serial"].is_null());
}

// Every object of the file, by its place in messages.
std::map<std::string, Json::json_pointer> Objects() {
  return {{"it", Json::json_pointer("")},
          {"it: machine", Json::json_pointer("/machine")},
          {"it: set", Json::json_pointer("/set")},
          {"it: paths[2]", Json::json_pointer("/paths/2")},
          {"it: paths[1]: settings", Json::json_pointer("/paths/1/settings")}};
}

absl::Status Parse(const Json& json) { return ParseTuned(json.dump(), "it").status(); }

// `key` of the object at `where` as `values`: each is refused, and file, place and key are named.
void ExpectRefused(const std::string& where, const Json::json_pointer& at, const std::string& key,
                   const std::vector<Json>& values) {
  for (const Json& value : values) {
    Json json = Json::parse(TunedText(Example()));
    json[at][key] = value;
    const absl::Status status = Parse(json);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << where << " " << key << " = " << value;
    EXPECT_THAT(std::string(Message(status)), HasSubstr(key));
    EXPECT_THAT(std::string(Message(status)), testing::StartsWith(where));
  }
}

TEST(TunedTest, EveryKeyMustBeThereAndOfItsTypeAndNoOther) {
  const std::vector<Json> kinds = {
      nullptr, true, 1.5, -1, 0, "text", Json::array(), Json::object(), "", std::string(4097, 'x')};
  for (const auto& [where, at] : Objects()) {
    const Json whole = Json::parse(TunedText(Example()));
    for (const auto& item : whole[at].items()) {
      const std::string& key = item.key();
      SCOPED_TRACE(fmt::format("{} {}", where, key));
      Json without = whole;
      without[at].erase(key);
      EXPECT_THAT(std::string(Message(Parse(without))), HasSubstr(key + " is missing"));
      std::vector<Json> wrong;
      const bool may_be_null = key == "device" || key == "model" || key == "serial";
      for (const Json& kind : kinds) {
        if (kind.is_null() && (may_be_null || key == "size_bytes")) continue;
        const bool same =
            kind.type() == item.value().type() || (kind.is_number() && item.value().is_number());
        if (!same || kind == Json("") || kind == -1 || kind == 0 || kind == kinds.back())
          wrong.push_back(kind);
      }
      ExpectRefused(where, at, key, wrong);
    }
    Json more = whole;
    more[at]["more"] = 1;
    EXPECT_THAT(std::string(Message(Parse(more))), AllOf(HasSubstr(where), HasSubstr("\"more\"")));
  }
}

TEST(TunedTest, NumbersAreWithinWhatARunTakes) {
  const Json::json_pointer set("/set");
  ExpectRefused(
      "it: set", set, "request_bytes",
      {4095, 4097, 512, (int64_t{256} << 20) + 4096, INT64_MAX, UINT64_MAX, 4096.5, 1e300});
  ExpectRefused("it: set", set, "depth", {1025, INT64_MAX, UINT64_MAX, 1.5, INT64_MIN});
  ExpectRefused("it: set", set, "batch", {49, 1025, INT64_MIN, 1.5});
  ExpectRefused("it: set", set, "engine", {"auto", "uring", "IO_URING"});
  for (const char* key :
       {"read_bytes_per_second", "write_bytes_per_second", "mixed_bytes_per_second"})
    ExpectRefused("it: set", set, key, {0.5, -1e9, 1.1e15, 1e300});
  ExpectRefused("it", Json::json_pointer(""), "sluice_tuned", {0, 2, "1", 1.5});
  ExpectRefused("it: paths[0]", Json::json_pointer("/paths/0"), "path", {"mnt/a", "./a"});
  ExpectRefused("it", Json::json_pointer(""), "paths",
                {Json::array(), std::vector<Json>(257, Json::object())});
}

TEST(TunedTest, WhatIsNoSuchFileIsRefusedByName) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "it is not JSON"},
      {"{", "it is not JSON"},
      {"[]", "it must hold an object, not []"},
      {"{}", "it: sluice_tuned is missing"},
      {"{} {}", "it is not JSON"},
      {"// text\n{}", "it is not JSON"},
      {R"({"a":[[[[[[[[[[1]]]]]]]]]]})", "it is nested too deeply"},
      {R"({"sluice_tuned":1,"sluice_tuned":1})", "it has the key \"sluice_tuned\" twice"},
      {"{\"\xFF\":1}", "it is not JSON"}};
  for (const auto& [text, words] : cases)
    EXPECT_EQ(std::string(Message(ParseTuned(text, "it").status())).substr(0, 60),
              std::string(words).substr(0, 60))
        << text;
  Tuned twice = Example();
  twice.paths[1].drive.path = "/mnt/a";
  EXPECT_THAT(std::string(Message(ParseTuned(TunedText(twice), "it").status())),
              HasSubstr("paths has \"/mnt/a\" twice"));
  // Only the inner one of two equal keys is wrong, whatever lies between.
  std::string text = TunedText(Example());
  text.insert(text.find("\"depth\""), "\"batch\": 1, ");
  EXPECT_THAT(std::string(Message(ParseTuned(text, "it").status())), HasSubstr("\"batch\" twice"));
}

TEST(TunedTest, FilesAreReadWhole) {
  const TempDir dir;
  const std::string path = dir.path() + "/tuned.json";
  EXPECT_TRUE(absl::IsNotFound(ReadTuned(path).status()));
  ASSERT_TRUE(ReplaceFile(path, TunedText(Example())).ok());
  const auto tuned = ReadTuned(path);
  ASSERT_TRUE(tuned.ok()) << tuned.status();
  EXPECT_EQ(*tuned, Example());
  std::ofstream(path) << std::string((1 << 20) + 1, ' ');
  EXPECT_THAT(std::string(Message(ReadTuned(path).status())), HasSubstr("more than 1 MiB"));
  EXPECT_THAT(std::string(Message(ReadTuned(dir.path()).status())), HasSubstr(dir.path()));
}

std::vector<DriveIdentity> DrivesAt(const std::vector<size_t>& indices) {
  std::vector<DriveIdentity> drives;
  drives.reserve(indices.size());
  for (const size_t i : indices) drives.push_back(Example().paths[i].drive);
  return drives;
}

TunedChoice Choose(const std::vector<DriveIdentity>& drives,
                   const MachineIdentity& machine = Example().machine) {
  return ChooseTuned(Example(), "it", machine, drives);
}

TEST(TunedTest, EverySubsetOfTheDrivesHasItsSettings) {
  const Tuned tuned = Example();
  for (unsigned bits = 1; bits < 8; ++bits) {
    std::vector<size_t> indices;
    uint32_t depth = 0;
    for (size_t i = 0; i < 3; ++i) {
      if ((bits >> i & 1) == 0) continue;
      indices.insert(indices.begin(), i);  // in another order than in the file
      depth += tuned.paths[i].settings.depth;
    }
    const TunedChoice choice = Choose(DrivesAt(indices));
    EXPECT_THAT(choice.warnings, IsEmpty());
    TunedSettings expected = tuned.set;
    if (indices.size() == 1) expected = tuned.paths[indices[0]].settings;
    if (indices.size() == 2) expected.depth = depth;
    EXPECT_EQ(choice.settings, expected) << bits;
    ASSERT_EQ(choice.rates.size(), indices.size());
    for (size_t i = 0; i < indices.size(); ++i) {
      EXPECT_EQ(choice.rates[i].read, tuned.paths[indices[i]].settings.read_rate);
      EXPECT_EQ(choice.rates[i].write, tuned.paths[indices[i]].settings.write_rate);
    }
  }
}

TEST(TunedTest, AFileOfAnotherMachineIsUsedAndThatIsSaid) {
  const MachineIdentity here = Example().machine;
  const std::vector<std::pair<MachineIdentity, const char*>> cases = {
      {{"other", here.cpu, here.kernel}, "another machine (box, A CPU; this is other, A CPU)"},
      {{here.host, "other", here.kernel}, "another machine (box, A CPU; this is box, other)"},
      {{here.host, here.cpu, "7"}, "another kernel (6.1.0; this is 7)"}};
  for (const auto& [machine, words] : cases) {
    const TunedChoice choice = Choose(DrivesAt({0}), machine);
    EXPECT_EQ(choice.settings, Example().paths[0].settings);
    EXPECT_THAT(choice.warnings, ElementsAre(AllOf(HasSubstr("it was tuned"), HasSubstr(words),
                                                   HasSubstr("run sluice tune again"))));
  }
}

TEST(TunedTest, AnotherDriveIsNoticedAndANewNameOfItIsNot) {
  const std::vector<std::pair<std::function<void(DriveIdentity*)>, bool>> changes = {
      {[](DriveIdentity* d) { d->serial = "9"; }, true},
      {[](DriveIdentity* d) { d->model = "B"; }, true},
      {[](DriveIdentity* d) { d->size = Bytes(5); }, true},
      {[](DriveIdentity* d) { d->file_system = "xfs"; }, true},
      {[](DriveIdentity* d) { d->device = "nvme1n1"; }, false}};
  for (const auto& [change, noticed] : changes) {
    std::vector<DriveIdentity> drives = DrivesAt({0});
    change(drives.data());
    const TunedChoice choice = Choose(drives);
    EXPECT_EQ(choice.settings, Example().paths[0].settings);
    ASSERT_EQ(choice.warnings.size(), noticed ? 1u : 0u);
    if (noticed) {
      EXPECT_THAT(choice.warnings[0],
                  AllOf(HasSubstr("/mnt/a was another drive"), HasSubstr("run sluice tune again")));
    }
  }
}

TEST(TunedTest, AnotherDirectoryOfADriveIsTheDrive) {
  std::vector<DriveIdentity> drives = DrivesAt({1});
  drives[0].path = "/mnt/b/below";
  EXPECT_EQ(Choose(drives).settings, Example().paths[1].settings);
  EXPECT_THAT(Choose(drives).warnings, IsEmpty());
  drives[0].serial = "9";
  const TunedChoice other = Choose(drives);
  EXPECT_EQ(other.settings, Example().set);
  EXPECT_THAT(other.rates, IsEmpty());
  EXPECT_THAT(other.warnings, ElementsAre(HasSubstr("/mnt/b/below is not in it")));
  // Of which nothing is known, no two are the same.
  Tuned bare = Example();
  bare.paths.resize(1);
  bare.paths[0].drive = {.path = "/mnt/net", .file_system = "nfs"};
  const DriveIdentity net{.path = "/mnt/other", .file_system = "nfs"};
  EXPECT_THAT(ChooseTuned(bare, "it", bare.machine, {&net, 1}).warnings,
              ElementsAre(HasSubstr("not in it")));
}

TEST(TunedTest, ThisMachineAndItsDrivesAreWhatTheyAreAgain) {
  const TempDir dir;
  EXPECT_EQ(ThisMachine(), ThisMachine());
  const DriveIdentity one = IdentityOf(FilesBelow(""), dir.path());
  EXPECT_EQ(one, IdentityOf(FilesBelow(""),
                            dir.path() + "/../" + dir.path().substr(dir.path().rfind('/') + 1)));
  Tuned tuned = Example();
  tuned.machine = ThisMachine();
  tuned.paths.resize(1);
  tuned.paths[0].drive = one;
  const auto again = ParseTuned(TunedText(tuned), "it");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_THAT(ChooseTuned(*again, "it", ThisMachine(), {&one, 1}).warnings, IsEmpty());
}

}  // namespace
}  // namespace sluice
