// offload/run/read_order.h
//
// In which order the states of streaming chunks are read: as the units come in forward, except that
// each drive may have only its share of the buffers on their way. Where the next chunk's drive has
// its share, the chunks of other drives go ahead, so that a drive which is slower than its rate
// says holds up its own chunks and no others', and ends no later for it.
//
// Threads: the control thread. Allocates in Add only.

#ifndef SLUICE_OFFLOAD_RUN_READ_ORDER_H_
#define SLUICE_OFFLOAD_RUN_READ_ORDER_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "core/types.h"
#include "nvme/drives.h"

namespace sluice {

class ReadOrder {
 public:
  // `shares`: by drive, how many of its chunks may be on their way at a time, at least 1.
  explicit ReadOrder(const std::vector<uint32_t>& shares);

  void Clear();  // of the chunks; those on their way still count
  void Add(ChunkIndex chunk, DriveIndex drive);
  void Restart();  // from the first chunk of each drive

  struct Turn {
    ChunkIndex chunk;
    DriveIndex drive;
  };
  // The first chunk not yet passed of a drive that has not its share; none if there is none.
  std::optional<Turn> Next() const;
  void Pass(const Turn& turn);  // the one that Next gave: begun, or not needed

  void Begun(DriveIndex drive) { ++lanes_[drive.value()].on_their_way; }
  void Ended(DriveIndex drive) { --lanes_[drive.value()].on_their_way; }

 private:
  struct Place {
    size_t position;  // among all
    ChunkIndex chunk;
  };
  struct Lane {
    uint32_t share = 1;
    uint32_t on_their_way = 0;
    std::vector<Place> chunks;
    size_t next = 0;
  };
  std::vector<Lane> lanes_;  // by drive
  size_t count_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_READ_ORDER_H_
