// Gradients that are set and cleared by hand, over the C ABI: in the order of the calls, and as the
// step's norm, overflow check and clipping see them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/offload/c_api_fixture.h"

namespace sluice {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

class CApiGradientsTest : public CApiTest {
 protected:
  void SetUp() override {
    CApiTest::SetUp();
    Load(1);
  }
  sluice_status Set(uint32_t tensor, float value) {
    const std::vector<float> values(static_cast<size_t>(kElements[tensor]), value);
    sluice_ticket ticket = 0;
    const sluice_status started = sluice_write(runtime_, tensor, SLUICE_GRAD, values.data(),
                                               SLUICE_F32, kElements[tensor], &ticket);
    return started == SLUICE_OK ? Wait(ticket) : started;
  }
  bool HasGradient(uint32_t tensor) {
    std::vector<float> values(static_cast<size_t>(kElements[tensor]));
    sluice_ticket ticket = 0;
    EXPECT_EQ(SLUICE_OK, sluice_read(runtime_, tensor, SLUICE_GRAD, values.data(), SLUICE_F32,
                                     kElements[tensor], &ticket));
    const sluice_status status = Wait(ticket);
    EXPECT_TRUE(status == SLUICE_OK || status == SLUICE_NOT_FOUND) << Error();
    return status == SLUICE_OK;
  }
  sluice_step_result Step(double clip_norm) {
    const sluice_group groups[2] = {DefaultGroup(), DefaultGroup()};
    const sluice_step_args args = {sizeof(args), groups, 2, clip_norm};
    sluice_ticket ticket = 0;
    EXPECT_EQ(SLUICE_OK, sluice_step(runtime_, &args, &ticket));
    EXPECT_EQ(SLUICE_OK, Wait(ticket)) << Error();
    sluice_step_result result{.struct_size = sizeof(result)};
    EXPECT_EQ(SLUICE_OK, sluice_last_step(runtime_, &result));
    return result;
  }
};

TEST_F(CApiGradientsTest, OneThatIsSetReplacesWhatWasThereAndIsAddedTo) {
  EXPECT_FALSE(HasGradient(0));
  EXPECT_EQ(SLUICE_OK, Set(0, 0.25f));
  EXPECT_THAT(Read(0, SLUICE_GRAD), Each(0.25f));
  PushGradients(0.5f);
  EXPECT_THAT(Read(0, SLUICE_GRAD), Each(0.75f));
  EXPECT_THAT(Read(1, SLUICE_GRAD), Each(0.5f));
  EXPECT_EQ(SLUICE_OK, Set(0, 2));
  EXPECT_THAT(Read(0, SLUICE_GRAD), Each(2.0f));
  EXPECT_THAT(Read(1, SLUICE_GRAD), Each(0.5f)) << "a neighbour in the same chunk";
}

TEST_F(CApiGradientsTest, OneThatIsClearedIsLeftAloneByTheStep) {
  EXPECT_EQ(SLUICE_OK, sluice_grad_clear(runtime_, 0)) << "there is none";
  PushGradients(0.5f);
  EXPECT_EQ(SLUICE_OK, sluice_grad_clear(runtime_, 0));
  EXPECT_FALSE(HasGradient(0));
  EXPECT_TRUE(HasGradient(1));
  EXPECT_NEAR(0.5 * std::sqrt(5007.0), Step(0).grad_norm, 1e-9);
  EXPECT_THAT(Read(0, SLUICE_MASTER), Each(1.0f));
  EXPECT_THAT(Read(1, SLUICE_MASTER), Each(::testing::FloatNear(0.9f, 1e-5f)));
}

// Sums are computed as gradients arrive in a boundary iteration: what is set or cleared afterwards
// must not be counted as it was.
TEST_F(CApiGradientsTest, TheNormIsOfWhatIsThereAtTheStep) {
  for (const uint32_t boundary : {0u, 1u}) {
    ASSERT_EQ(SLUICE_OK, sluice_iteration_begin(runtime_, boundary, boundary));
    PushGradients(0.5f);
    ASSERT_EQ(SLUICE_OK, sluice_iteration_end(runtime_));
    sluice_ticket ticket = 0;
    ASSERT_EQ(SLUICE_OK, sluice_drain(runtime_, &ticket));
    ASSERT_EQ(SLUICE_OK, Wait(ticket));
    EXPECT_EQ(SLUICE_OK, Set(0, 3));
    EXPECT_EQ(SLUICE_OK, sluice_grad_clear(runtime_, 1));
    EXPECT_NEAR(std::sqrt(9.0 * 300 + 0.25 * 5000), Step(0).grad_norm, 1e-9);
    EXPECT_EQ(0, Step(0).grad_norm) << "a step forgets gradients, however they came";
  }
}

TEST_F(CApiGradientsTest, ClippingAndOverflowSeeWhatWasSet) {
  EXPECT_EQ(SLUICE_OK, Set(0, 3));
  const sluice_step_result clipped = Step(1);
  EXPECT_NEAR(std::sqrt(9.0 * 300), clipped.grad_norm, 1e-9);
  const float scaled = 3 / static_cast<float>(clipped.grad_norm + 1e-6);
  EXPECT_THAT(Read(0, SLUICE_EXP_AVG), Each(::testing::FloatNear(0.1f * scaled, 1e-7f)));
  const std::vector<float> before = Read(2, SLUICE_MASTER);
  for (const float value :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    PushGradients(0.5f);
    EXPECT_EQ(SLUICE_OK, Set(1, value));
    EXPECT_EQ(0, Step(1).applied);
    EXPECT_EQ(before, Read(2, SLUICE_MASTER));
    PushGradients(value);
    for (uint32_t t = 0; t < 3; ++t) EXPECT_EQ(SLUICE_OK, Set(t, 0.5f));
    EXPECT_EQ(1, Step(0).applied) << "what overflowed was replaced";
    PushGradients(value);
    for (uint32_t t = 0; t < 2; ++t) EXPECT_EQ(SLUICE_OK, sluice_grad_clear(runtime_, t));
    EXPECT_EQ(SLUICE_OK, sluice_grad_clear(runtime_, 2));
    EXPECT_EQ(1, Step(0).applied) << "what overflowed was cleared";
    for (uint32_t t = 0; t < 3; ++t) {
      const std::vector<float> ones(static_cast<size_t>(kElements[t]), 1.0f);
      sluice_ticket ticket = 0;
      ASSERT_EQ(SLUICE_OK, sluice_write(runtime_, t, SLUICE_MASTER, ones.data(), SLUICE_F32,
                                        kElements[t], &ticket));
      ASSERT_EQ(SLUICE_OK, Wait(ticket));
    }
  }
}

// A unit's parameters are in use, and stay where they are.
TEST_F(CApiGradientsTest, MayBeSetAndClearedWhileTheUnitIsAcquired) {
  sluice_ticket ticket = 0;
  ASSERT_EQ(SLUICE_OK, sluice_acquire(runtime_, 0, nullptr, &ticket));
  ASSERT_EQ(SLUICE_OK, Wait(ticket));
  EXPECT_EQ(SLUICE_OK, Set(0, 3)) << Error();
  EXPECT_EQ(SLUICE_OK, sluice_grad_clear(runtime_, 0));
  EXPECT_FALSE(HasGradient(0));
  EXPECT_EQ(SLUICE_OK, sluice_release(runtime_, 0, nullptr));
}

// Everything at once, without waiting: each read sees the calls before it.
TEST_F(CApiGradientsTest, TakeTheirPlaceInTheOrderOfTheCalls) {
  constexpr size_t kN = 5000;
  const std::vector<float> one(kN, 1.0f);
  const std::vector<float> five(kN, 5.0f);
  std::vector<std::vector<float>> seen(5, std::vector<float>(kN));
  std::vector<sluice_ticket> tickets;
  const auto push = [&] {
    sluice_grad(runtime_, 2, one.data(), kN, nullptr, &tickets.emplace_back());
  };
  const auto set = [&] {
    sluice_write(runtime_, 2, SLUICE_GRAD, five.data(), SLUICE_F32, kN, &tickets.emplace_back());
  };
  const auto look = [&](size_t i) {
    sluice_read(runtime_, 2, SLUICE_GRAD, seen[i].data(), SLUICE_F32, kN, &tickets.emplace_back());
  };
  push(), push(), look(0);
  set(), look(1);
  push(), look(2);
  EXPECT_EQ(SLUICE_OK, sluice_grad_clear(runtime_, 2));
  look(3);
  set(), set(), push(), look(4);
  std::vector<sluice_status> statuses;
  for (const sluice_ticket ticket : tickets) statuses.push_back(Wait(ticket));
  EXPECT_THAT(seen[0], Each(2.0f));
  EXPECT_THAT(seen[1], Each(5.0f));
  EXPECT_THAT(seen[2], Each(6.0f));
  EXPECT_EQ(SLUICE_NOT_FOUND, statuses[7]) << "it was cleared";
  EXPECT_THAT(seen[4], Each(6.0f));
}

TEST_F(CApiGradientsTest, ACallTakesAllThatItNamesOrNothing) {
  const std::vector<float> ones(5000, 1.0f);
  const std::vector<sluice_gradient> all = {
      {ones.data(), 300, 0, 0}, {ones.data(), 7, 1, 0}, {ones.data(), 5000, 2, 0}};
  sluice_ticket ticket = 0;
  const auto give = [&](const std::vector<sluice_gradient>& gradients) {
    const sluice_status started =
        sluice_grads(runtime_, gradients.data(), gradients.size(), nullptr, &ticket);
    return started == SLUICE_OK ? Wait(ticket) : started;
  };
  struct Case {
    const char* words;
    void (*spoil)(sluice_gradient*);
    sluice_status status = SLUICE_INVALID_ARGUMENT;
  };
  const Case cases[] = {
      {"data is NULL", [](sluice_gradient* g) { g->data = nullptr; }},
      {"elements, not", [](sluice_gradient* g) { ++g->elements; }},
      {"elements, not", [](sluice_gradient* g) { g->elements = -1; }},
      {"tensor 3 does not exist", [](sluice_gradient* g) { g->tensor = 3; }},
      {"lent is 2", [](sluice_gradient* g) { g->lent = 2; }},
      {"is not aligned",
       [](sluice_gradient* g) {
         g->data = static_cast<const char*>(g->data) + 1;
         g->lent = 1;
       }},
      {"is on the tiers", [](sluice_gradient* g) { g->lent = 1; }, SLUICE_FAILED_PRECONDITION}};
  for (const Case& c : cases) {
    for (size_t wrong = 0; wrong < all.size(); ++wrong) {
      std::vector<sluice_gradient> gradients = all;
      c.spoil(&gradients[wrong]);
      EXPECT_EQ(c.status, give(gradients)) << c.words;
      EXPECT_THAT(Error(), HasSubstr(c.words));
      for (uint32_t t = 0; t < 3; ++t) EXPECT_FALSE(HasGradient(t)) << c.words;
    }
  }
  for (const size_t twice : {0, 1, 2}) {
    std::vector<sluice_gradient> gradients = all;
    gradients.push_back(all[twice]);
    EXPECT_EQ(SLUICE_INVALID_ARGUMENT, give(gradients));
    EXPECT_THAT(Error(), HasSubstr("is named twice"));
  }
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, give({}));
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_grads(runtime_, nullptr, 3, nullptr, &ticket));
  EXPECT_EQ(SLUICE_INVALID_ARGUMENT, sluice_grads(runtime_, all.data(), 3, nullptr, nullptr));
  for (uint32_t t = 0; t < 3; ++t) EXPECT_FALSE(HasGradient(t));
  EXPECT_EQ(SLUICE_OK, give(all));
  EXPECT_EQ(SLUICE_OK, give({all[2], all[0]})) << "in any order";
  EXPECT_THAT(Read(0, SLUICE_GRAD), Each(2.0f));
  EXPECT_THAT(Read(1, SLUICE_GRAD), Each(1.0f));
  EXPECT_THAT(Read(2, SLUICE_GRAD), Each(2.0f));
}

TEST_F(CApiGradientsTest, OfWhatHasNoValuesAreRefused) {
  ASSERT_EQ(SLUICE_OK, sluice_runtime_destroy(runtime_));
  const sluice_options options = DefaultOptions();
  ASSERT_EQ(SLUICE_OK, sluice_runtime_create(model_, &options, &runtime_)) << Error();
  EXPECT_EQ(SLUICE_FAILED_PRECONDITION, Set(0, 1));
  EXPECT_THAT(Error(), HasSubstr("tensor 'tensor0' of unit 'first' has no values yet"));
}

}  // namespace
}  // namespace sluice
