// Checkpoints by the C ABI: what an embedding framework saves is what it loads, and what it gets
// wrong is an error with words.

#include <gmock/gmock.h>

#include <filesystem>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "offload/sluice_checkpoint.h"
#include "tests/nvme/temp_dir.h"
#include "tests/offload/c_api_fixture.h"

namespace sluice {
namespace {

using testing::HasSubstr;

class CApiCheckpointTest : public CApiTest {
 protected:
  sluice_save_args SaveArgs(const char* tag) {
    sluice_save_args args = SLUICE_SAVE_INIT;
    args.directory = dir_.path().c_str();
    args.tag = tag;
    args.id = ++id_;
    return args;
  }
  sluice_status Save(const sluice_save_args& args) {
    sluice_ticket ticket = 0;
    const sluice_status status = sluice_save(runtime_, &args, &ticket);
    return status == SLUICE_OK ? Wait(ticket) : status;
  }
  sluice_status LoadFrom(const char* tag, uint32_t flags = 0) {
    sluice_load_args args = SLUICE_LOAD_INIT;
    args.directory = dir_.path().c_str();
    args.tag = tag;
    args.flags = flags;
    sluice_ticket ticket = 0;
    const sluice_status status = sluice_load(runtime_, &args, &ticket);
    return status == SLUICE_OK ? Wait(ticket) : status;
  }
  nlohmann::json Describe(const char* tag) {
    size_t needed = 0;
    EXPECT_EQ(SLUICE_OK, sluice_checkpoint_describe(dir_.path().c_str(), tag, nullptr, 0, &needed))
        << Error();
    std::string text(needed, '\0');
    EXPECT_EQ(SLUICE_OK, sluice_checkpoint_describe(dir_.path().c_str(), tag, text.data(),
                                                    text.size(), &needed));
    return nlohmann::json::parse(text.c_str(), nullptr, false);
  }
  void Train() {
    PushGradients(0.5F);
    const sluice_group groups[2] = {DefaultGroup(), DefaultGroup()};
    const sluice_step_args args = {sizeof(args), groups, 2, 0, nullptr, 0};
    sluice_ticket ticket = 0;
    ASSERT_EQ(SLUICE_OK, sluice_step(runtime_, &args, &ticket)) << Error();
    ASSERT_EQ(SLUICE_OK, Wait(ticket)) << Error();
  }
  void MakeAnother() {
    ASSERT_EQ(SLUICE_OK, sluice_runtime_destroy(runtime_));
    const sluice_options options = DefaultOptions();
    ASSERT_EQ(SLUICE_OK, sluice_runtime_create(model_, &options, &runtime_)) << Error();
  }

  TempDir dir_;
  uint64_t id_ = 0;
};

TEST_F(CApiCheckpointTest, WhatIsSavedIsLoaded) {
  Load(1);
  Train();
  const std::string client("a\0b", 3);
  const sluice_attachment attached[] = {{"client.bin", client.data(), client.size()},
                                        {"empty", nullptr, 0}};
  sluice_save_args args = SaveArgs("one");
  args.attachments = attached;
  args.attachment_count = 2;
  ASSERT_EQ(SLUICE_OK, Save(args)) << Error();
  std::vector<std::vector<float>> saved;
  for (uint32_t t = 0; t < std::size(kElements); ++t) {
    for (const int32_t field : {SLUICE_MASTER, SLUICE_EXP_AVG, SLUICE_EXP_AVG_SQ})
      saved.push_back(Read(t, field));
  }
  Train();
  EXPECT_NE(Read(0, SLUICE_MASTER), saved[0]);
  MakeAnother();
  ASSERT_EQ(SLUICE_OK, LoadFrom(nullptr)) << Error();
  size_t i = 0;
  for (uint32_t t = 0; t < std::size(kElements); ++t) {
    for (const int32_t field : {SLUICE_MASTER, SLUICE_EXP_AVG, SLUICE_EXP_AVG_SQ})
      EXPECT_EQ(Read(t, field), saved[i++]) << t << " " << field;
    sluice_tensor_info info{.struct_size = sizeof(info)};
    ASSERT_EQ(SLUICE_OK, sluice_tensor_query(runtime_, t, &info));
    EXPECT_EQ(info.step, 1);
  }
  Train();  // units can be acquired, and trained

  size_t needed = 0;
  char read[3] = {};
  const char* const path = dir_.path().c_str();
  EXPECT_EQ(SLUICE_OK,
            sluice_checkpoint_attachment(path, "one", 0, "client.bin", read, 3, &needed));
  EXPECT_EQ(needed, 3u);
  EXPECT_EQ(std::string(read, 3), client);
  EXPECT_EQ(SLUICE_OK,
            sluice_checkpoint_attachment(path, nullptr, 0, "empty", nullptr, 0, &needed));
  EXPECT_EQ(needed, 0u);
  EXPECT_EQ(SLUICE_NOT_FOUND,
            sluice_checkpoint_attachment(path, "one", 0, "other", read, 3, &needed));
  EXPECT_EQ(SLUICE_NOT_FOUND,
            sluice_checkpoint_attachment(path, "one", 1, "client.bin", read, 3, &needed));
}

TEST_F(CApiCheckpointTest, SaysWhatThereIs) {
  EXPECT_EQ(Describe(nullptr)["checkpoints"].size(), 0u);
  Load(1);
  ASSERT_EQ(SLUICE_OK, Save(SaveArgs("first"))) << Error();
  Train();
  ASSERT_EQ(SLUICE_OK, Save(SaveArgs("second"))) << Error();
  Train();
  ASSERT_EQ(SLUICE_OK, Save(SaveArgs("third"))) << Error();
  const nlohmann::json all = Describe(nullptr)["checkpoints"];
  ASSERT_EQ(all.size(), 3u) << all;
  EXPECT_EQ(all[0]["tag"], "third");
  EXPECT_EQ(all[0]["steps"], 2);
  EXPECT_EQ(all[0]["ranks"], 1);
  EXPECT_TRUE(all[0]["problem"].is_null());
  const nlohmann::json one = Describe("second");
  ASSERT_EQ(one["tensors"].size(), std::size(kElements)) << one;
  EXPECT_EQ(one["tensors"][2]["name"], "tensor2");
  EXPECT_EQ(one["tensors"][2]["elements"], kElements[2]);
  EXPECT_EQ(one["tensors"][2]["step"], 1);
  EXPECT_EQ(one["tensors"][2]["dtype"], "fp32");
  EXPECT_EQ(one["tensors"][2]["fields"], (nlohmann::json{"master", "exp_avg", "exp_avg_sq"}));
  ASSERT_EQ(SLUICE_OK, sluice_checkpoint_prune(dir_.path().c_str(), 1, 0)) << Error();
  EXPECT_EQ(Describe(nullptr)["checkpoints"].size(), 1u);
  EXPECT_EQ(SLUICE_OK, LoadFrom("third")) << Error();
  EXPECT_EQ(SLUICE_NOT_FOUND, LoadFrom("first"));
}

TEST_F(CApiCheckpointTest, WhatIsWrongIsNamed) {
  Load(1);
  const auto refused = [&](const char* words, auto change) {
    sluice_save_args args = SaveArgs("tag");
    change(&args);
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, Save(args)) << words;
    EXPECT_THAT(Error(), HasSubstr(words));
  };
  refused("directory", [](auto* args) { args->directory = nullptr; });
  refused("tag", [](auto* args) { args->tag = nullptr; });
  refused("id", [](auto* args) { args->id = 0; });
  refused("attachments", [](auto* args) { args->attachment_count = 1; });
  refused("struct_size", [](auto* args) { args->struct_size = 3; });
  for (const char* tag : {"", ".", "..", ".hidden", "a/b", "/a"})
    refused("tag", [tag](auto* args) { args->tag = tag; });
  const std::string long_tag(300, 'a');
  refused("tag", [&](auto* args) { args->tag = long_tag.c_str(); });
  for (const char* name : {"", "../x", "a/b", "run.json", ".", "..", "/x"}) {
    const sluice_attachment attached = {name, "x", 1};
    sluice_save_args args = SaveArgs("tag");
    args.attachments = &attached;
    args.attachment_count = 1;
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, Save(args)) << name;
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir_.path())) << "something was left";
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, LoadFrom("tag", 64));
  EXPECT_THAT(Error(), HasSubstr("flags"));
  EXPECT_EQ(SLUICE_NOT_FOUND, LoadFrom("tag"));
  EXPECT_THAT(Error(), HasSubstr("no checkpoint"));
  EXPECT_EQ(SLUICE_NOT_FOUND, LoadFrom(nullptr));
  EXPECT_EQ(Read(0, SLUICE_MASTER), std::vector<float>(kElements[0], 1));  // still usable
}

TEST_F(CApiCheckpointTest, OfWhatHasNoValuesNothingIsSaved) {
  EXPECT_EQ(SLUICE_FAILED_PRECONDITION, Save(SaveArgs("tag")));
  EXPECT_THAT(Error(), HasSubstr("tensor0"));
  EXPECT_TRUE(std::filesystem::is_empty(dir_.path()));
}

TEST_F(CApiCheckpointTest, AcquiredUnitsKeepFromLoadingNotFromSaving) {
  Load(1);
  sluice_ticket ticket = 0;
  ASSERT_EQ(SLUICE_OK, sluice_acquire(runtime_, 0, nullptr, &ticket));
  ASSERT_EQ(SLUICE_OK, Wait(ticket)) << Error();
  ASSERT_EQ(SLUICE_OK, Save(SaveArgs("tag"))) << Error();
  EXPECT_EQ(SLUICE_FAILED_PRECONDITION, LoadFrom("tag"));
  EXPECT_THAT(Error(), HasSubstr("first"));
  ASSERT_EQ(SLUICE_OK, sluice_release(runtime_, 0, nullptr));
  EXPECT_EQ(SLUICE_OK, LoadFrom("tag")) << Error();
}

}  // namespace
}  // namespace sluice
