#include "core/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <stdlib.h>

#include <cmath>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {
namespace {

using testing::HasSubstr;

TEST(ParseBytesTest, TakesWhatPeopleWrite) {
  struct Case {
    const char* text;
    int64_t bytes;
  };
  const Case cases[] = {
      {"0", 0},
      {"123", 123},
      {"17B", 17},
      {"512MiB", 512 << 20},
      {"512 MiB", 512 << 20},
      {"1.5GiB", 3LL << 29},
      {"2GB", 2'000'000'000},
      {"64k", 65536},
      {"64K", 65536},
      {"64KiB", 65536},
      {"64kb", 64000},
      {"3m", 3 << 20},
      {"1t", 1LL << 40},
      {"0.5TB", 500'000'000'000},
      {"8 gib ", 8LL << 30},
      {".5k", 512},
  };
  for (const Case& c : cases) {
    const absl::StatusOr<Bytes> bytes = ParseBytes(c.text);
    ASSERT_TRUE(bytes.ok()) << c.text << ": " << bytes.status();
    EXPECT_EQ(c.bytes, bytes->value()) << c.text;
  }
}

TEST(ParseBytesTest, RefusesTheRestAndShowsHow) {
  for (const char* text : {"", " ", "MiB", "-1", "-1MiB", "1e3", "1MiBB", "1 2", "0x10", "nan",
                           "inf", "1PiB", "9300000000000000000", "9e99", "1,5GiB", "99999999TiB"}) {
    const absl::StatusOr<Bytes> bytes = ParseBytes(text);
    ASSERT_FALSE(bytes.ok()) << text << " is " << bytes->value();
    EXPECT_TRUE(absl::IsInvalidArgument(bytes.status())) << text;
    EXPECT_THAT(std::string(Message(bytes.status())),
                HasSubstr(fmt::format("'{}' is not a size; write it like 512MiB", text)));
  }
}

TEST(FormatBytesTest, UsesTheLargestUnit) {
  EXPECT_EQ("0 B", FormatBytes(Bytes(0)));
  EXPECT_EQ("17 B", FormatBytes(Bytes(17)));
  EXPECT_EQ("1023 B", FormatBytes(Bytes(1023)));
  EXPECT_EQ("1 KiB", FormatBytes(Bytes(1024)));
  EXPECT_EQ("1.5 GiB", FormatBytes(MiB(1536)));
  EXPECT_EQ("512 MiB", FormatBytes(MiB(512)));
  EXPECT_EQ("-2 KiB", FormatBytes(Bytes(-2048)));
  EXPECT_EQ("8 EiB", FormatBytes(Bytes(INT64_MAX)));
}

TEST(FormatBytesTest, RoundsUpWhatIsNeededAndDownWhatThereIs) {
  EXPECT_EQ("8 MiB", FormatBytesUp(MiB(8)));
  EXPECT_EQ("8 MiB", FormatBytesDown(MiB(8)));
  EXPECT_EQ("8.1 MiB", FormatBytesUp(MiB(8) + Bytes(1)));
  EXPECT_EQ("8 MiB", FormatBytesDown(MiB(8) + KiB(100)));
  EXPECT_EQ("1 GiB", FormatBytesUp(GiB(1) - Bytes(1)));
  EXPECT_EQ("1023.9 MiB", FormatBytesDown(GiB(1) - Bytes(1)));
  EXPECT_EQ("1023 B", FormatBytesUp(Bytes(1023)));
  EXPECT_EQ("0 B", FormatBytesDown(Bytes(0)));
}

// Copied from a message into a budget, a size does what the message says; and what is needed never
// reads as what there is.
RC_GTEST_PROP(FormatBytesTest, RoundedSizesAreReadBackOnTheirSide, ()) {
  const auto shift = *rc::gen::inRange(1, 61);
  const auto bytes = *rc::gen::inRange<int64_t>(0, int64_t{1} << shift);
  const absl::StatusOr<Bytes> up = ParseBytes(FormatBytesUp(Bytes(bytes)));
  const absl::StatusOr<Bytes> down = ParseBytes(FormatBytesDown(Bytes(bytes)));
  RC_ASSERT(up.ok() && down.ok());
  RC_ASSERT(up->value() >= bytes);
  RC_ASSERT(down->value() <= bytes);
  RC_ASSERT(static_cast<double>(up->value() - down->value()) <= 0.1 * static_cast<double>(bytes));
  const auto more = *rc::gen::inRange<int64_t>(1, 1 << 20);
  RC_ASSERT(FormatBytesDown(Bytes(bytes)) != FormatBytesUp(Bytes(bytes + more)));
}

TEST(ParseBytesTest, IsExactForWholeNumbers) {
  for (const int64_t bytes : {(int64_t{1} << 53) + 1, (int64_t{1} << 61) - 1, int64_t{4097}})
    EXPECT_EQ(Bytes(bytes), ParseBytes(fmt::format("{} B", bytes)).value());
  EXPECT_EQ(Bytes(((int64_t{1} << 52) + 1) * 1024), ParseBytes("4503599627370497KiB").value());
}

TEST(FormatBytesTest, NeverShowsATousandAndMoreOfAUnit) {
  EXPECT_EQ("1 MiB", FormatBytes(MiB(1) - Bytes(1)));
  EXPECT_EQ("1 GiB", FormatBytes(GiB(1) - KiB(1)));
}

RC_GTEST_PROP(FormatBytesTest, IsReadBackToWithinItsDecimal, ()) {
  const auto bytes = *rc::gen::inRange<int64_t>(0, int64_t{1} << 49);
  const absl::StatusOr<Bytes> again = ParseBytes(FormatBytes(Bytes(bytes)));
  RC_ASSERT(again.ok());
  RC_ASSERT(std::abs(static_cast<double>(again->value() - bytes)) <=
            0.051 * static_cast<double>(bytes) + 0.5);
}

TEST(GetEnvTest, EmptyIsNotSet) {
  ASSERT_EQ(0, setenv("SLUICE_CONFIG_TEST", "x", 1));
  EXPECT_EQ("x", GetEnv("SLUICE_CONFIG_TEST"));
  ASSERT_EQ(0, setenv("SLUICE_CONFIG_TEST", "", 1));
  EXPECT_EQ(std::nullopt, GetEnv("SLUICE_CONFIG_TEST"));
  ASSERT_EQ(0, unsetenv("SLUICE_CONFIG_TEST"));
  EXPECT_EQ(std::nullopt, GetEnv("SLUICE_CONFIG_TEST"));
}

TEST(NearestNameTest, FindsTheTypingError) {
  const std::vector<std::string> names = {"offload_param", "offload_optimizer", "stage", "lr"};
  EXPECT_EQ("offload_param", NearestName("offload_parms", names));
  EXPECT_EQ("offload_optimizer", NearestName("offload_optimiser", names));
  EXPECT_EQ("stage", NearestName("stgae", names));
  EXPECT_EQ("lr", NearestName("lr", names));
  EXPECT_EQ(std::nullopt, NearestName("contiguous_gradients", names));
  EXPECT_EQ(std::nullopt, NearestName("stage", {}));
}

TEST(NearestNameTest, AShortNameIsNotNearToEverything) {
  EXPECT_EQ(std::nullopt, NearestName("xy", {"lr", "eps"}));
}

}  // namespace
}  // namespace sluice
