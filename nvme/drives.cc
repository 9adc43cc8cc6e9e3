#include "nvme/drives.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

// Beside the fastest, so that products stay in range.
std::vector<double> RatesOf(std::span<const Drive> drives) {
  std::vector<double> rates;
  double most = 0;
  for (const Drive& drive : drives) {
    rates.push_back(drive.rate.both());
    most = std::max(most, rates.back());
  }
  for (double& rate : rates) rate /= most;
  return rates;
}

}  // namespace

absl::Status CheckRates(std::span<const Drive> drives) {
  for (const Drive& drive : drives) {
    for (const double rate : {drive.rate.read, drive.rate.write}) {
      if (std::isnormal(rate) && rate > 0) continue;
      return absl::InvalidArgumentError(
          fmt::format("the rates of drive {} must be positive numbers, not {}", drive.path, rate));
    }
  }
  return absl::OkStatus();
}

Dealer::Dealer(std::span<const Drive> drives)
    : rates_(RatesOf(drives)),
      rates_sum_(std::accumulate(rates_.begin(), rates_.end(), 0.0)),
      dealt_(drives.size(), 0) {}

// Of the drives that hold less than their share of what will then be dealt, the one whose share
// would be exceeded first.
DriveIndex Dealer::Next(Bytes size) {
  SLUICE_CHECK(!rates_.empty());
  const auto bytes = static_cast<double>(size.value());
  dealt_sum_ += bytes;
  size_t best = rates_.size();
  for (size_t d = 0; d < rates_.size(); ++d) {
    if (dealt_[d] * rates_sum_ >= rates_[d] * dealt_sum_) continue;
    if (best == rates_.size() ||
        (dealt_[d] + bytes) * rates_[best] < (dealt_[best] + bytes) * rates_[d])
      best = d;
  }
  SLUICE_CHECK(best < rates_.size());
  dealt_[best] += bytes;
  return DriveIndex(static_cast<uint32_t>(best));
}

std::vector<uint32_t> SharesOf(std::span<const Drive> drives, uint32_t total) {
  if (drives.empty()) return {};
  const std::vector<double> rates = RatesOf(drives);
  const auto count = static_cast<uint32_t>(drives.size());
  const uint32_t least = std::clamp(total / count, 1u, 2u);
  std::vector<uint32_t> shares(count, least);
  for (uint32_t given = least * count; given < total; ++given) {
    size_t best = 0;
    for (size_t d = 1; d < count; ++d) {
      if (rates[d] * (shares[best] + 1) > rates[best] * (shares[d] + 1)) best = d;
    }
    ++shares[best];
  }
  return shares;
}

}  // namespace sluice
