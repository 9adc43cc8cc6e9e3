#include "nvme/drives.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace sluice {
namespace {

std::vector<Drive> DrawnDrives() {
  std::vector<Drive> drives(*rc::gen::inRange<size_t>(1, 17));
  for (Drive& drive : drives) {
    drive.rate = {.read = *rc::gen::inRange(1, 200) / 10.0,
                  .write = *rc::gen::inRange(1, 200) / 10.0};
  }
  return drives;
}

// Reads and writes of so many bytes each take 1 / read + 1 / write a byte.
double ShareOf(const std::vector<Drive>& drives, size_t d) {
  const auto rate = [](const Drive& drive) {
    return 1 / (1 / drive.rate.read + 1 / drive.rate.write);
  };
  double sum = 0;
  for (const Drive& drive : drives) sum += rate(drive);
  return rate(drives[d]) / sum;
}

RC_GTEST_PROP(DealerTest, EachDriveHoldsItsShareToWithinOneAtEveryMoment, ()) {
  const std::vector<Drive> drives = DrawnDrives();
  Dealer dealer(drives);
  std::vector<double> dealt(drives.size(), 0);
  for (int n = 1; n <= 500; ++n) {
    ++dealt[dealer.Next(KiB(48)).value()];
    for (size_t d = 0; d < drives.size(); ++d)
      RC_ASSERT(std::abs(dealt[d] - n * ShareOf(drives, d)) < 1 + 1e-9);
  }
}

RC_GTEST_PROP(DealerTest, ThingsOfAllSizesAreSharedByBytes, ()) {
  const std::vector<Drive> drives = DrawnDrives();
  Dealer dealer(drives);
  std::vector<double> dealt(drives.size(), 0);
  double sum = 0;
  for (int n = 1; n <= 500; ++n) {
    const int64_t size = *rc::gen::inRange<int64_t>(1, 1000);
    dealt[dealer.Next(Bytes(size)).value()] += static_cast<double>(size);
    sum += static_cast<double>(size);
    for (size_t d = 0; d < drives.size(); ++d) {
      const double over = dealt[d] - sum * ShareOf(drives, d);
      RC_ASSERT(over < 1000);
      RC_ASSERT(over > -1000 * static_cast<double>(drives.size()));
    }
  }
}

RC_GTEST_PROP(SharesTest, PlacesGoByRateAndNobodyGoesWithout, ()) {
  const std::vector<Drive> drives = DrawnDrives();
  const uint32_t total = *rc::gen::inRange(1u, 300u);
  const std::vector<uint32_t> shares = SharesOf(drives, total);
  const auto count = static_cast<uint32_t>(drives.size());
  RC_ASSERT(shares.size() == drives.size());
  RC_ASSERT(std::accumulate(shares.begin(), shares.end(), 0u) == std::max(total, count));
  for (size_t d = 0; d < count; ++d) {
    RC_ASSERT(shares[d] >= (total >= 2 * count ? 2 : 1));
    // What others were given beyond their share, so that they have two, is all that one can lack.
    RC_ASSERT(shares[d] > total * ShareOf(drives, d) - 2.0 * count);
    RC_ASSERT(shares[d] < total * ShareOf(drives, d) + 2.0 + count);
    for (size_t e = 0; e < count; ++e)
      RC_ASSERT(ShareOf(drives, d) <= ShareOf(drives, e) + 1e-12 || shares[d] >= shares[e]);
  }
}

TEST(SharesTest, FourToOne) {
  const Drive drives[] = {{.rate = {.read = 4, .write = 4}}, {.rate = {.read = 1, .write = 1}}};
  EXPECT_EQ(SharesOf(drives, 16), (std::vector<uint32_t>{13, 3}));
  EXPECT_EQ(SharesOf(drives, 1), (std::vector<uint32_t>{1, 1}));
  EXPECT_TRUE(SharesOf({}, 16).empty());
}

TEST(RatesTest, OnlyPositiveNumbersWillDo) {
  for (const double good : {1e-300, 0.5, 3e9, 1e300}) {
    const Drive drives[] = {{.path = "/a", .rate = {.read = good, .write = 1}}, {.path = "/b"}};
    EXPECT_TRUE(CheckRates(drives).ok()) << good;
    Dealer dealer(drives);
    for (int i = 0; i < 10; ++i) dealer.Next(KiB(4));
  }
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const double bad : {0.0, -1.0, kInfinity, -kInfinity, std::nan("")}) {
    for (const DriveRate rate : {DriveRate{bad, 1}, DriveRate{1, bad}}) {
      const Drive drives[] = {{.path = "/a"}, {.path = "/b", .rate = rate}};
      const absl::Status status = CheckRates(drives);
      EXPECT_TRUE(absl::IsInvalidArgument(status)) << bad;
      EXPECT_NE(status.message().find("/b"), std::string::npos) << status;
    }
  }
}

}  // namespace
}  // namespace sluice
