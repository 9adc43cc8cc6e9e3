// What callers of the C ABI may rely on: words for every error, older structs, text that is cut.

#include <gmock/gmock.h>

#include <atomic>
#include <thread>

#include "nlohmann/json.hpp"
#include "tests/offload/c_api_fixture.h"

namespace sluice {
namespace {

using testing::Each;
using testing::HasSubstr;

TEST_F(CApiTest, SaysItsVersion) {
  EXPECT_EQ(SLUICE_ABI_VERSION, static_cast<int>(sluice_abi_version()));
  EXPECT_THAT(sluice_version(), testing::MatchesRegex("[0-9]+\\.[0-9]+\\.[0-9]+"));
}

TEST_F(CApiTest, TheWordsOfAnErrorBelongToItsThread) {
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_model_create(nullptr));
  const std::string here = Error();
  std::thread([this] {
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_iteration_begin(runtime_, 99, 0));
    EXPECT_THAT(Error(), HasSubstr("key is 99"));
  }).join();
  EXPECT_EQ(here, Error());
}

TEST_F(CApiTest, TextIsCutToItsCapacityAndEnded) {
  size_t needed = 0;
  ASSERT_EQ(SLUICE_OK, sluice_report(runtime_, nullptr, 0, &needed));
  ASSERT_GT(needed, 100u);
  std::string whole(needed, 'x');
  ASSERT_EQ(SLUICE_OK, sluice_report(runtime_, whole.data(), needed, nullptr));
  EXPECT_EQ('\0', whole.back());
  const nlohmann::json report = nlohmann::json::parse(whole.c_str());
  EXPECT_EQ(5307, report["parameters"]);
  char cut[10] = "123456789";
  ASSERT_EQ(SLUICE_OK, sluice_report(runtime_, cut, 5, &needed));
  EXPECT_EQ(whole.substr(0, 4), cut);
  EXPECT_EQ('6', cut[5]) << "written beyond the capacity";
}

TEST_F(CApiTest, TrainsAndReports) {
  Load(1);
  PushGradients(0.5f);
  const sluice_group groups[2] = {DefaultGroup(), DefaultGroup()};
  const sluice_step_args args = {sizeof(args), groups, 2, 0};
  sluice_ticket ticket = 0;
  ASSERT_EQ(SLUICE_OK, sluice_step(runtime_, &args, &ticket));
  ASSERT_EQ(SLUICE_OK, Wait(ticket)) << Error();
  sluice_step_result result{.struct_size = sizeof(result)};
  ASSERT_EQ(SLUICE_OK, sluice_last_step(runtime_, &result));
  EXPECT_EQ(1, result.applied);
  EXPECT_EQ(1.0, result.loss_scale);
  EXPECT_NEAR(0.5 * std::sqrt(5307.0), result.grad_norm, 1e-9);
  // The first step of Adam is the learning rate, against the gradient.
  for (uint32_t t = 0; t < 3; ++t)
    EXPECT_THAT(Read(t, SLUICE_MASTER), Each(testing::FloatNear(0.9f, 1e-5f)));
  sluice_tensor_info info{.struct_size = sizeof(info)};
  ASSERT_EQ(SLUICE_OK, sluice_tensor_query(runtime_, 1, &info));
  EXPECT_EQ(0u, info.unit);
  EXPECT_EQ(7, info.elements);
  EXPECT_EQ(320, info.offset) << "at a multiple of 64 elements";
  EXPECT_EQ(1, info.step);
  ASSERT_EQ(SLUICE_OK, sluice_drain(runtime_, &ticket));
  ASSERT_EQ(SLUICE_OK, Wait(ticket)) << Error();
  ASSERT_EQ(SLUICE_OK, sluice_tensor_query(runtime_, 1, &info));
  EXPECT_EQ(0, info.unwritten);
}

TEST_F(CApiTest, TheChecksumKnowsBitsBlockAndGeneration) {
  const auto checksum = [](const std::string& data, uint32_t block, uint64_t generation) {
    uint64_t result = 0;
    EXPECT_EQ(SLUICE_OK, sluice_checksum(data.data(), data.size(), block, generation, &result));
    return result;
  };
  const std::string data(1000, 'x');
  std::set<uint64_t> all = {checksum(data, 1, 1), checksum(data, 2, 1), checksum(data, 1, 2),
                            checksum(data, 2, 2), checksum(data.substr(1), 1, 1)};
  for (size_t bit = 0; bit < 8 * data.size(); bit += 7) {
    std::string flipped = data;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    all.insert(checksum(flipped, 1, 1));
  }
  EXPECT_EQ(5 + (8000 + 6) / 7, all.size());
  EXPECT_EQ(checksum(data, 1, 1), checksum(std::string(1000, 'x'), 1, 1));
  uint64_t nothing = 0;
  EXPECT_EQ(SLUICE_OK, sluice_checksum(nullptr, 0, 1, 1, &nothing)) << "no bytes, no address";
  EXPECT_EQ(checksum("", 1, 1), nothing);
}

TEST_F(CApiTest, TheComputeCopyIsRoundedWhateverTypeItIsReadIn) {
  ASSERT_EQ(SLUICE_OK, sluice_runtime_destroy(runtime_));
  sluice_options options = DefaultOptions();
  options.param_dtype = SLUICE_BF16;
  ASSERT_EQ(SLUICE_OK, sluice_runtime_create(model_, &options, &runtime_)) << Error();
  Load(1.001f);
  for (uint32_t t = 0; t < 3; ++t) {
    EXPECT_THAT(Read(t, SLUICE_MASTER), Each(1.001f));
    EXPECT_THAT(Read(t, SLUICE_PARAM), Each(1.0f));
  }
}

// ---- Callers built against an older version

TEST_F(CApiTest, WhatAnOlderCallersOptionsLackHasItsDefault) {
  size_t needed = 0;
  sluice_options options = DefaultOptions();
  options.trace_spans_max = UINT64_MAX;  // refused, if it were read
  constexpr size_t kFirst = offsetof(sluice_options, nvme_paths);
  for (size_t size = kFirst; size <= offsetof(sluice_options, trace_spans_max); size += 8) {
    EXPECT_EQ(SLUICE_OK, sluice_plan(model_, Shorter(options, size).get(), nullptr, 0, &needed))
        << size << ": " << Error();
  }
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_plan(model_, &options, nullptr, 0, &needed));
}

TEST_F(CApiTest, ANewerCallersOptionsAreReadAsFarAsTheyAreKnown) {
  struct {
    sluice_options known = DefaultOptions();
    double unknown[3] = {1, 2, 3};
  } newer;
  newer.known.struct_size = sizeof(newer);
  size_t needed = 0;
  EXPECT_EQ(SLUICE_OK, sluice_plan(model_, &newer.known, nullptr, 0, &needed)) << Error();
}

TEST_F(CApiTest, AnOlderCallersGroupsAreShorterAndSoAreTheirSteps) {
  Load(1);
  PushGradients(0.5f);
  constexpr size_t kOldSize = offsetof(sluice_group, l2_decay);
  alignas(8) std::array<std::byte, 2 * kOldSize> groups;
  for (size_t g = 0; g < 2; ++g) {
    sluice_group group = DefaultGroup();
    group.struct_size = kOldSize;
    group.lr = g == 0 ? 0.1 : 0.0;  // tensor1 is the only one of group 1
    std::memcpy(groups.data() + g * kOldSize, &group, kOldSize);
  }
  const sluice_step_args args = {sizeof(args), reinterpret_cast<const sluice_group*>(groups.data()),
                                 2, 0};
  sluice_ticket ticket = 0;
  ASSERT_EQ(SLUICE_OK, sluice_step(runtime_, &args, &ticket)) << Error();
  ASSERT_EQ(SLUICE_OK, Wait(ticket)) << Error();
  EXPECT_THAT(Read(0, SLUICE_MASTER), Each(testing::FloatNear(0.9f, 1e-5f)));
  EXPECT_THAT(Read(1, SLUICE_MASTER), Each(1.0f));
}

TEST_F(CApiTest, ResultsEndWhereAnOlderCallersStructsEnd) {
  const auto info = Shorter(sluice_tensor_info{}, offsetof(sluice_tensor_info, step));
  ASSERT_EQ(SLUICE_OK, sluice_tensor_query(runtime_, 2, info.get())) << Error();
  EXPECT_EQ(5000, info->elements);
  EXPECT_EQ(offsetof(sluice_tensor_info, step), info->struct_size);
  const sluice_rates rates{.struct_size = offsetof(sluice_rates, nvme_bytes),
                           .forward_seconds = 2,
                           .backward_seconds = 3};
  const auto terms = Shorter(sluice_floor_terms{}, offsetof(sluice_floor_terms, backward));
  ASSERT_EQ(SLUICE_OK, sluice_floor(runtime_, &rates, terms.get())) << Error();
  EXPECT_EQ(5, terms->total);
  EXPECT_EQ(2, terms->forward);
}

// ---- Threads

TEST_F(CApiTest, AModelMayBeDescribedByManyThreads) {
  constexpr uint32_t kThreads = 4;
  constexpr uint32_t kUnits = 50;
  sluice_model model = 0;
  ASSERT_EQ(SLUICE_OK, sluice_model_create(&model));
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([model] {
      for (uint32_t n = 0; n < kUnits; ++n) {
        uint32_t unit = 0;
        uint32_t tensor = 0;
        ASSERT_EQ(SLUICE_OK, sluice_model_add_unit(model, "unit", &unit));
        ASSERT_EQ(SLUICE_OK, sluice_model_add_tensor(model, unit, "tensor", 10, 0, &tensor));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const sluice_options options = DefaultOptions();
  std::string json(1 << 16, '\0');
  ASSERT_EQ(SLUICE_OK, sluice_plan(model, &options, json.data(), json.size(), nullptr)) << Error();
  EXPECT_EQ(kThreads * kUnits * 10, nlohmann::json::parse(json.c_str())["parameters"]);
  EXPECT_EQ(SLUICE_OK, sluice_model_destroy(model));
}

TEST_F(CApiTest, OneOfManyWhoDestroyARuntimeDoes) {
  std::atomic<int> destroyed{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      if (sluice_runtime_destroy(runtime_) == SLUICE_OK) ++destroyed;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(1, destroyed);
}

TEST_F(CApiTest, ManyThreadsMayReadAndStep) {
  Load(1);
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 3; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 20; ++i) EXPECT_THAT(Read(t, SLUICE_MASTER), Each(1.0f));
    });
  }
  const sluice_group groups[2] = {DefaultGroup(), DefaultGroup()};
  const sluice_step_args args = {sizeof(args), groups, 2, 0};
  for (int i = 0; i < 20; ++i) {  // without gradients: nothing changes
    sluice_ticket ticket = 0;
    ASSERT_EQ(SLUICE_OK, sluice_step(runtime_, &args, &ticket));
    ASSERT_EQ(SLUICE_OK, Wait(ticket)) << Error();
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace sluice
