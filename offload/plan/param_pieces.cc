#include "offload/plan/param_pieces.h"

#include <algorithm>

namespace sluice {

ParamPieces::ParamPieces(const ModelLayout& layout, const Placement& placement)
    : piece_of_(layout.chunks().size(), kNone), offsets_(layout.chunks().size(), 0) {
  for (size_t u = 0; u < layout.units().size(); ++u) {
    const UnitLayout& unit = layout.units()[u];
    const bool from_nvme = placement.param_home[u] == Tier::kNvme;
    if (unit.lent) continue;
    Bytes used = placement.param_buffer_bytes;  // of the last piece: no more goes into it
    for (uint32_t c = unit.first_chunk; c < unit.first_chunk + unit.chunk_count; ++c) {
      if (!from_nvme && !placement.CopiesUpdate(layout, c)) {
        used = placement.param_buffer_bytes;
        continue;
      }
      // Chunks in HBM begin where their neighbours' capacity ends.
      const Bytes bytes = layout.chunks()[c].param_bytes();
      const Bytes room = from_nvme ? RoundUp(bytes, placement.io_alignment) : bytes;
      const bool adjoins =
          c > unit.first_chunk && layout.chunks()[c - 1].offset + layout.chunks()[c - 1].capacity ==
                                      layout.chunks()[c].offset;
      if (pieces_.empty() || !adjoins || used + room > placement.param_buffer_bytes) {
        pieces_.push_back({.first = c, .count = 0});
        used = Bytes(0);
      }
      offsets_[c] = used.value();
      piece_of_[c] = static_cast<uint32_t>(pieces_.size() - 1);
      longest_ = std::max(longest_, ++pieces_.back().count);
      used += room;
    }
  }
}

}  // namespace sluice
