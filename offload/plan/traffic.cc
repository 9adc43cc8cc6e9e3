#include "offload/plan/traffic.h"

#include <algorithm>

namespace sluice {

StepTraffic TrafficOf(const ModelLayout& layout, const Placement& p) {
  StepTraffic t;
  t.nvme_read = t.nvme_written = p.states_nvme + p.grads_nvme;
  t.read_ahead = std::min(p.states_nvme, p.state_buffer_bytes * p.state_buffers);
  t.spilled = p.grads_nvme;
  for (size_t c = 0; c < layout.chunks().size(); ++c) {
    const ChunkLayout& chunk = layout.chunks()[c];
    if (chunk.keep == Keep::kParam || p.state_home[c] == Tier::kHbm) continue;  // nothing moves
    for (const ChunkRun& run : layout.runs(chunk)) {
      t.elements_updated += run.elements;
      t.grads += Bytes(run.elements * SizeOf(chunk.types.grad));
    }
    const Tier params = p.param_home[chunk.unit.value()];
    const Bytes on_nvme = RoundUp(chunk.param_bytes(), p.io_alignment);
    if (params == Tier::kNvme) t.nvme_written += on_nvme;
    if (params == Tier::kNvme && layout.reads_params(chunk)) t.nvme_read += on_nvme;
    if (p.CopiesUpdate(layout, c)) t.to_hbm += chunk.param_bytes();
  }
  Bytes streamed;  // units that don't live in HBM, or this rank's shards of them
  Bytes slots;     // the room that they take there
  for (size_t u = 0; u < p.param_home.size(); ++u) {
    if (p.resident(u)) continue;
    streamed += p.home_bytes[u];
    slots += p.slot_bytes[u];
  }
  // Forward brings in all of them; backward what the cache did not keep.
  Bytes again = std::max(Bytes(0), slots - p.hbm_cache);
  if (slots > streamed) {
    const double share = static_cast<double>(again.value()) / static_cast<double>(slots.value());
    again = Bytes(static_cast<int64_t>(share * static_cast<double>(streamed.value())));
  }
  t.to_hbm += streamed + again;
  t.nvme_read += p.params_nvme;
  if (streamed > Bytes(0)) {
    const double share =
        static_cast<double>(p.params_nvme.value()) / static_cast<double>(streamed.value());
    t.nvme_read += Bytes(static_cast<int64_t>(share * static_cast<double>(again.value())));
  }
  t.checksummed = t.nvme_read + t.nvme_written;
  return t;
}

}  // namespace sluice
