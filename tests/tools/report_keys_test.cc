// The keys that the headers of reports list, from where docs/api.md has them, are those of real
// reports.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "offload/sluice.h"
#include "tests/nvme/temp_dir.h"

namespace sluice {
namespace {

using Json = nlohmann::json;
using Keys = std::set<std::string>;

// By the list's title.
std::map<std::string, Keys> ListedKeys() {
  std::map<std::string, Keys> lists;
  const std::regex title("// Keys of (.*):");
  const std::regex key("//   (\\S+).*");
  for (const char* header : {"report.h", "doctor.h"}) {
    std::ifstream file(std::string(SLUICE_SOURCE_DIR "/offload/run/") + header);
    std::string line;
    Keys* list = nullptr;
    while (std::getline(file, line)) {
      std::smatch match;
      if (std::regex_match(line, match, title)) {
        list = &lists[match[1]];
      } else if (list != nullptr && std::regex_match(line, match, key)) {
        list->insert(match[1]);
      } else {
        list = nullptr;
      }
    }
  }
  return lists;
}

// "a.b" for every value, "a.TIER" for three of them, "a.TIMES" for four, "a.WAIT" for five; what
// `closed` names is not looked into.
Keys KeysOf(const Json& object, const std::string& closed = "") {
  Keys keys;
  for (const auto& [name, value] : object.items()) {
    if (!value.is_object() || name == closed) {
      keys.insert(name);
      continue;
    }
    Keys inner = KeysOf(value);
    if (inner == Keys{"hbm", "pinned", "nvme"}) inner = {"TIER"};
    if (inner == Keys{"count", "p50", "p99", "max"}) inner = {"TIMES"};
    if (inner == Keys{"fetch", "update", "gradients", "ranks", "drive"}) inner = {"WAIT"};
    for (const std::string& key : inner) keys.insert(name + "." + key);
  }
  return keys;
}

Keys Together(Keys a, const Keys& b) {
  a.insert(b.begin(), b.end());
  return a;
}

// Those of `all` that are not among `keys`.
Keys Without(const Keys& all, const Keys& keys) {
  Keys rest;
  for (const std::string& key : all) {
    if (!keys.contains(key)) rest.insert(key);
  }
  return rest;
}

void Check(sluice_status status) { ASSERT_EQ(status, SLUICE_OK) << sluice_last_error(); }

template <typename Call>
Json Parsed(Call call) {
  std::vector<char> text(1 << 20);
  size_t needed = 0;
  EXPECT_EQ(call(text.data(), text.size(), &needed), SLUICE_OK) << sluice_last_error();
  EXPECT_LE(needed, text.size());
  return Json::parse(text.data());
}

class ReportKeysTest : public testing::Test {
 protected:
  void SetUp() override {
    Check(sluice_model_create(&model_));
    uint32_t unit = 0;
    uint32_t tensor = 0;
    Check(sluice_model_add_unit(model_, "unit", &unit));
    Check(sluice_model_add_tensor(model_, unit, "tensor", 20'000, 0, &tensor));
    options_.hbm_bytes = 1 << 20;
    options_.pinned_bytes = 8 << 20;
    options_.device = SLUICE_DEVICE_HOST;
  }
  void TearDown() override { Check(sluice_model_destroy(model_)); }

  const std::map<std::string, Keys> listed_ = ListedKeys();
  sluice_model model_ = 0;
  sluice_options options_ = SLUICE_OPTIONS_INIT;
};

TEST_F(ReportKeysTest, OfAPlan) {
  const Json plan = Parsed([&](char* json, size_t capacity, size_t* needed) {
    return sluice_plan(model_, &options_, json, capacity, needed);
  });
  EXPECT_EQ(KeysOf(plan), Together(listed_.at("a plan"), listed_.at("the device, in a plan only")));
}

TEST_F(ReportKeysTest, OfAReportItsCountersAndDrives) {
  const TempDir directory;
  const char* const path = directory.path().c_str();
  options_.nvme_paths = &path;
  options_.nvme_path_count = 1;
  sluice_runtime runtime = 0;
  Check(sluice_runtime_create(model_, &options_, &runtime));
  const Json report = Parsed([&](char* json, size_t capacity, size_t* needed) {
    return sluice_report(runtime, json, capacity, needed);
  });
  Check(sluice_runtime_destroy(runtime));
  const Keys listed =
      Together(listed_.at("a plan"), listed_.at("a report, beside those of a plan"));
  EXPECT_THAT(Without(KeysOf(report, "counters"), listed), testing::IsEmpty());
  EXPECT_THAT(Without(listed, KeysOf(report, "counters")), testing::IsEmpty());
  EXPECT_EQ(KeysOf(report.at("drives").at(0)), listed_.at("each of the drives"));
  // Some counters are there only once something was counted.
  const Keys& counters = listed_.at("the counters");
  const Keys there = KeysOf(report.at("counters"));
  EXPECT_THAT(Without(there, counters), testing::IsEmpty());
  EXPECT_THAT(Without(counters, there),
              testing::IsSubsetOf({"misused_releases", "steps", "steps_skipped"}));
}

TEST_F(ReportKeysTest, OfTheDoctor) {
  const TempDir directory;
  const Keys& listed = listed_.at("the doctor's report");
  const auto doctor = [](const std::string& path) {
    return KeysOf(Parsed([&](char* json, size_t capacity, size_t* needed) {
      return sluice_doctor(path.c_str(), json, capacity, needed);
    }));
  };
  const Keys good = doctor(directory.path());
  const Keys bad = doctor(directory.path() + "/missing");
  EXPECT_THAT(Without(good, listed), testing::IsEmpty());
  EXPECT_THAT(Without(bad, listed), testing::IsEmpty());
  EXPECT_THAT(Without(listed, Together(good, bad)),
              testing::IsSubsetOf(
                  {"memory.cgroup_limit_bytes", "memory.cgroup_used_bytes", "memory.cgroup_path",
                   // Of a drive, or of none.
                   "path.drive", "path.drive.name", "path.drive.model", "path.drive.bus",
                   "path.drive.numa_node", "path.drive.numa_distance"}));
}

}  // namespace
}  // namespace sluice
