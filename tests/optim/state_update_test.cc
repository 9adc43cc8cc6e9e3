// State formats and update rules by themselves: a pair without a kernel of its own gives the bits
// of one that has it, and values of any type go in and out of every format.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "core/status.h"
#include "optim/adamw.h"
#include "optim/adamw_rule.h"
#include "tests/optim/other_states.h"
#include "tests/optim/targets.h"

namespace sluice {
namespace {

using testing::Bf16Moments;
using ::testing::HasSubstr;
using testing::Sgd;
using testing::SplitMasters;

constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kBf16, FloatType::kF16};
constexpr size_t kSizes[] = {0, 1, 2, 7, 63, 65, 1023, 1024, 1025, 2049, 3001};
constexpr StateFormatMaker kFormats[] = {MakeFp32States, Bf16Moments::Make, SplitMasters::Make};

std::vector<std::shared_ptr<const UpdateRule>> Rules() { return {MakeAdamW(), Sgd::Make()}; }

// fp32 states of which nobody is told that they are: no kernel has them, and tiles are copied.
class HiddenFp32 final : public StateFormat {
 public:
  using StateFormat::StateFormat;
  static std::shared_ptr<const StateFormat> Make(std::span<const StateField> fields) {
    return std::make_shared<HiddenFp32>(fields);
  }
  std::string name() const override { return "hidden fp32"; }
  Bytes bytes(int64_t capacity, std::optional<FloatType> param_type) const override {
    return fp32_->bytes(capacity, param_type);
  }
  bool reads_param(std::optional<FloatType> param_type) const override {
    return fp32_->reads_param(param_type);
  }
  void Load(const ChunkStates& chunk, size_t field, int64_t at,
            std::span<float> values) const override {
    fp32_->Load(chunk, field, at, values);
  }
  void Store(const ChunkStates& chunk, size_t field, int64_t at,
             std::span<const float> values) const override {
    fp32_->Store(chunk, field, at, values);
  }

 private:
  const std::shared_ptr<const StateFormat> fp32_ = MakeFp32States(fields());
};

// A chunk's states and copies, and what lies behind them, which nobody may touch.
class Chunk {
 public:
  Chunk(const StateFormat& format, int64_t capacity, FloatType copy)
      : states_(format.bytes(capacity, copy).size() + kBehind, kGuard),
        params_(static_cast<size_t>(capacity * SizeOf(copy)) + kBehind, kGuard),
        view_{.data = states_.data(),
              .capacity = capacity,
              .param = params_.data(),
              .param_type = copy} {
    std::fill(states_.begin(), states_.end() - kBehind, std::byte{0});
    std::fill(params_.begin(), params_.end() - kBehind, std::byte{0});
  }

  const ChunkStates& view() const { return view_; }
  std::byte* param(int64_t at) { return params_.data() + at * SizeOf(*view_.param_type); }
  const std::vector<std::byte>& states() const { return states_; }
  const std::vector<std::byte>& params() const { return params_; }
  bool guarded() const {
    const auto whole = [](const std::vector<std::byte>& bytes) {
      return std::all_of(bytes.end() - kBehind, bytes.end(),
                         [](std::byte b) { return b == kGuard; });
    };
    return whole(states_) && whole(params_);
  }

 private:
  static constexpr int64_t kBehind = 64;
  static constexpr std::byte kGuard{0xA5};
  std::vector<std::byte> states_;
  std::vector<std::byte> params_;
  ChunkStates view_;
};

std::vector<float> Values(size_t n, uint32_t seed, bool positive = false) {
  std::mt19937 random(seed);
  std::vector<float> values(n);
  for (float& value : values) {
    const auto draw = static_cast<float>(random() >> 8) * 0x1p-24f;
    value = positive ? draw : 2 * draw - 1;
  }
  return values;
}

// In `type`, and back.
std::vector<std::byte> As(const std::vector<float>& values, FloatType type) {
  std::vector<std::byte> out(values.size() * static_cast<size_t>(SizeOf(type)));
  Convert(values.data(), FloatType::kF32, out.data(), type, values.size());
  return out;
}
std::vector<float> RoundedTo(const std::vector<float>& values, FloatType type) {
  std::vector<float> out(values.size());
  Convert(As(values, type).data(), type, out.data(), FloatType::kF32, values.size());
  return out;
}

// All sizes and starts, types of gradients and copies, an fp32 one of which is the master, on every
// vector target.
TEST(StateUpdateTest, TilesGiveTheBitsOfTheKernel) {
  const auto rule = MakeAdamW();
  const StateUpdate fused(MakeFp32States(rule->fields()), rule);
  const StateUpdate tiled(HiddenFp32::Make(rule->fields()), rule);
  ASSERT_TRUE(fused.CheckGpu().ok());
  ASSERT_FALSE(tiled.CheckGpu().ok());
  ForEachTarget([&] {
    uint32_t seed = 0;
    for (const size_t n : kSizes) {
      const FloatType grad_type = kTypes[++seed % 3], copy = kTypes[seed / 3 % 3];
      const auto at = static_cast<int64_t>(seed % 5);
      const int64_t capacity = static_cast<int64_t>(n) + at + 3;
      Chunk chunks[] = {{fused.format(), capacity, copy}, {tiled.format(), capacity, copy}};
      const std::vector<std::byte> grads = As(Values(n, seed), grad_type);
      const StepScalars scalars =
          rule->Scalars(Hyperparameters::Of(AdamWHyper{.lr = 1e-2}), 3, 0.5f);
      for (Chunk& chunk : chunks) {
        const StateUpdate& update = &chunk == chunks ? fused : tiled;
        for (size_t field = 0; field < 3; ++field) {
          const std::vector<float> values =
              Values(static_cast<size_t>(capacity), seed + 90 + field, field == 2);
          update.format().Store(chunk.view(), field, 0, values);
        }
        update.Run(
            nullptr, scalars, chunk.view(),
            {.at = at,
             .elements = n,
             .grad = grads.data(),
             .grad_type = grad_type,
             .param_out = copy == FloatType::kF32 || seed % 4 == 0 ? nullptr : chunk.param(at),
             .param_type = copy});
        EXPECT_TRUE(chunk.guarded());
      }
      EXPECT_EQ(chunks[0].states(), chunks[1].states()) << n;
      EXPECT_EQ(chunks[0].params(), chunks[1].params()) << n;
    }
  });
}

// Into each field of every format and out again, as any type, beside values that stay.
TEST(StateFormatTest, ValuesOfAnyTypeGoInAndOut) {
  uint32_t seed = 0;
  for (const StateFormatMaker make : kFormats) {
    for (const auto& rule : Rules()) {
      const auto format = make(rule->fields());
      SCOPED_TRACE(std::string(rule->name()).append(" over ").append(format->name()));
      for (const size_t n : kSizes) {
        for (const FloatType copy : kTypes) {
          const FloatType type = kTypes[++seed % 3];
          const auto at = static_cast<int64_t>(seed % 7);
          const size_t room = n + static_cast<size_t>(at) + 2;
          Chunk chunk(*format, static_cast<int64_t>(room), copy);
          for (size_t field = 0; field < rule->fields().size(); ++field) {
            const bool rounds = make == Bf16Moments::Make && field != kMasterIndex;
            std::vector<float> all = Values(room, seed + 7);
            format->Write(chunk.view(), field, 0, all.data(), FloatType::kF32, room);
            const std::vector<float> some = Values(n, seed + 8);
            format->Write(chunk.view(), field, at, As(some, type).data(), type, n);
            const std::vector<float> put = RoundedTo(some, type);
            std::copy(put.begin(), put.end(), all.begin() + at);
            if (rounds) all = RoundedTo(all, FloatType::kBf16);
            std::vector<std::byte> got(room * static_cast<size_t>(SizeOf(type)));
            format->Read(chunk.view(), field, 0, got.data(), type, room);
            EXPECT_EQ(got, As(all, type));
            EXPECT_TRUE(chunk.guarded());
          }
        }
      }
    }
  }
}

// Beside an fp32 copy there is no other master: it is read and written there, and takes no room.
TEST(StateFormatTest, AnFp32CopyIsTheMaster) {
  for (const auto& rule : Rules()) {
    const auto format = MakeFp32States(rule->fields());
    const auto fields = static_cast<int64_t>(rule->fields().size());
    for (const FloatType copy : kTypes) {
      const bool is_master = copy == FloatType::kF32;
      EXPECT_EQ(format->reads_param(copy), is_master);
      EXPECT_EQ(format->columns(copy), fields - (is_master ? 1 : 0));
      EXPECT_EQ(format->bytes(640, copy), Bytes(640 * 4 * format->columns(copy)));
    }
    EXPECT_FALSE(format->reads_param(std::nullopt));
    EXPECT_EQ(format->columns(std::nullopt), fields);
    EXPECT_EQ(format->bytes(640, std::nullopt), Bytes(640 * 4 * fields));
    Chunk chunk(*format, 640, FloatType::kF32);
    const std::vector<float> masters = Values(600, 3);
    format->Store(chunk.view(), kMasterIndex, 7, masters);
    EXPECT_EQ(std::memcmp(chunk.param(7), masters.data(), masters.size() * sizeof(float)), 0);
    EXPECT_TRUE(std::ranges::all_of(std::span(chunk.states()).first(640 * 4),
                                    [](std::byte b) { return b == std::byte{0}; }));
  }
}

// A caller has changed some of the parameters that it keeps: those masters follow, the others keep
// what the parameters don't show.
TEST(StateFormatTest, ChangedParametersAreAdopted) {
  for (const StateFormatMaker make : kFormats) {
    const auto format = make(MakeAdamW()->fields());
    SCOPED_TRACE(format->name());
    for (const FloatType type : kTypes) {
      for (const size_t n : kSizes) {
        Chunk chunk(*format, static_cast<int64_t>(n) + 9, type);
        ChunkStates lent = chunk.view();
        lent.param_type = std::nullopt;  // which may take more bytes: the chunk is made anew
        std::vector<std::byte> states(format->bytes(lent.capacity, std::nullopt).size());
        lent.data = states.data();
        std::vector<float> masters = Values(n, 5);
        format->Write(lent, kMasterIndex, 9, masters.data(), FloatType::kF32, n);
        std::vector<float> params = RoundedTo(masters, type);
        for (size_t i = 0; i < n; i += 3) masters[i] = params[i] = 0.5f * static_cast<float>(i % 4);
        format->Adopt(lent, 9, As(params, type).data(), type, n);
        std::vector<float> got(n);
        format->Read(lent, kMasterIndex, 9, got.data(), FloatType::kF32, n);
        EXPECT_EQ(got, masters);
      }
    }
  }
}

TEST(StateUpdateTest, WhatIsKeptIsFoundByItsNumber) {
  for (const auto& rule : Rules()) {
    const StateUpdate update(MakeFp32States(rule->fields()), rule);
    size_t found = 0;
    for (int id = 0; id < 256; ++id) {
      const auto place = update.format().Find(static_cast<Field>(id));
      const absl::Status kept = update.CheckKeeps(static_cast<Field>(id));
      EXPECT_EQ(kept.ok(), place.has_value());
      if (place) {
        EXPECT_EQ(static_cast<int>(rule->fields()[*place].id), id);
        ++found;
        continue;
      }
      for (const StateField& field : rule->fields())
        EXPECT_THAT(std::string(Message(kept)), HasSubstr(field.name));
    }
    EXPECT_EQ(found, rule->fields().size());
  }
}

TEST(StateUpdateDeathTest, AValueOfAnotherRuleIsCaught) {
  const Hyperparameters hyper = Hyperparameters::Of(testing::SgdHyper());
  EXPECT_DEATH((void)MakeAdamW()->Scalars(hyper, 1, 1.0f), "another update rule");
  EXPECT_DEATH((void)MakeAdamW()->Scalars({}, 1, 1.0f), "another update rule");
}

}  // namespace
}  // namespace sluice
