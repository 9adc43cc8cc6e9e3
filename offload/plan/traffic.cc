#include "offload/plan/traffic.h"

#include <algorithm>

namespace sluice {

StepTraffic TrafficOf(const ModelLayout& layout, const Placement& p) {
  StepTraffic t;
  if (p.grad_home == Tier::kHbm) return t;  // nothing moves
  t.elements_updated = layout.updated_count();
  t.nvme_read = p.states_nvme;
  t.nvme_written = p.states_nvme;
  for (const ChunkLayout& chunk : layout.chunks()) {
    if (p.param_home[chunk.unit.value()] != Tier::kNvme || chunk.keep == Keep::kParam) continue;
    t.nvme_written += RoundUp(chunk.param_bytes(), p.io_alignment);
    if (layout.reads_params(chunk)) t.nvme_read += RoundUp(chunk.param_bytes(), p.io_alignment);
  }
  t.read_ahead = std::min(p.states_nvme, p.state_buffer_bytes * p.state_buffers);
  Bytes streamed;  // units that don't live in HBM
  for (size_t u = 0; u < p.param_home.size(); ++u) {
    if (p.param_home[u] != Tier::kHbm) streamed += p.slot_bytes[u];
  }
  // Forward brings in all of them; backward what the cache did not keep.
  const Bytes again = std::max(Bytes(0), streamed - p.hbm_cache);
  t.to_hbm = streamed + again;
  t.nvme_read += p.params_nvme;
  if (streamed > Bytes(0)) {
    const double share =
        static_cast<double>(p.params_nvme.value()) / static_cast<double>(streamed.value());
    t.nvme_read += Bytes(static_cast<int64_t>(share * static_cast<double>(again.value())));
  }
  for (const UnitLayout& unit : layout.units()) {
    const auto u = static_cast<size_t>(&unit - layout.units().data());
    if (p.CopiesUpdates(layout, u))
      t.to_hbm += Bytes(unit.updated_elements * unit.types.param.size());
  }
  t.checksummed = t.nvme_read + t.nvme_written;
  for (const TensorLayout& tensor : layout.tensors()) {
    if (tensor.keep != Keep::kParam) t.grads += Bytes(tensor.elements * SizeOf(tensor.types.grad));
  }
  return t;
}

}  // namespace sluice
