// offload/run/planted_bug.h
//
// Bugs that tests plant to show that the simulation finds them. The simulation has builds of its
// own of the sources that have a place for one (SLUICE_PLANTED_BUGS; offload/CMakeLists.txt), and
// its world says which bug is planted. In the library these places are constants, and nothing of
// them is left; tests/lint/planted.py looks.

#ifndef SLUICE_OFFLOAD_RUN_PLANTED_BUG_H_
#define SLUICE_OFFLOAD_RUN_PLANTED_BUG_H_

#include <cstdint>

#include "offload/run/context.h"

namespace sluice {

enum class PlantedBug : uint8_t {
  kNone,
  kReuseBeforeWritten,  // a buffer is given out again while it is being written to the drive
  kStaleGeneration,     // a unit's copy in HBM outlives the update of the unit
  kLostWrite,           // updated states are taken for written, and are not
  kSwappedBlocks,       // a chunk's states are read from its neighbour's block
  kDroppedEvent,        // a read that ended before the step is forgotten
  kDoubleRelease,       // a buffer is given back twice
  kUnverifiedRead,      // what the drive returns is taken as it comes
  kEvictViewed,         // a slot is reused while views of it are alive
  kUsedBeforeItCame,    // a caller's stream doesn't wait for the copy of the unit that it uses
  kCopiedOverReaders,   // a copy doesn't wait for the streams that read what was in its slot
};

#ifdef SLUICE_PLANTED_BUGS
bool Planted(const Context& context, PlantedBug bug);
#else
[[gnu::always_inline]] constexpr bool Planted(const Context&, PlantedBug) { return false; }
#endif

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_PLANTED_BUG_H_
