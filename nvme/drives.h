// nvme/drives.h
//
// The drives that blocks are spread over, and how: each gets its share of the blocks, of the
// transfers under way and of the buffers, in proportion to its rate. A drive is a directory that
// was given; two directories on one piece of hardware count as two. Pure.

#ifndef SLUICE_NVME_DRIVES_H_
#define SLUICE_NVME_DRIVES_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/types.h"

namespace sluice {

using DriveIndex = Strong<struct DriveTag, uint32_t>;

// How fast a drive is beside the others, in any unit that all of them share.
struct DriveRate {
  double read = 1;
  double write = 1;

  // Of bytes that are read as often as they are written.
  double both() const { return 2 / (1 / read + 1 / write); }
};

struct Drive {
  std::string path;
  DriveRate rate;
};

// Errors: InvalidArgument naming the path, unless every rate is a positive number.
absl::Status CheckRates(std::span<const Drive> drives);

// Deals things over drives, one after another, so that at every moment each drive holds its share
// of the bytes dealt so far: never more than one thing too much and, where all are equally large,
// never as much as one too little (the quota method of apportionment).
class Dealer {
 public:
  explicit Dealer(std::span<const Drive> drives);
  DriveIndex Next(Bytes size);  // of at least one drive

 private:
  std::vector<double> rates_;
  double rates_sum_ = 0;
  std::vector<double> dealt_;  // bytes, by drive
  double dealt_sum_ = 0;
};

// `total` places (of transfers, of buffers) by drive, in proportion to the rates. Each drive gets
// two if there are so many, one being served and one waiting, else one: fewer places than drives
// are promised more than once.
std::vector<uint32_t> SharesOf(std::span<const Drive> drives, uint32_t total);

}  // namespace sluice

#endif  // SLUICE_NVME_DRIVES_H_
