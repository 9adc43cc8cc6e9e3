#include "offload/plan/floor.h"

#include <algorithm>

namespace sluice {

namespace {

double Over(double amount, double rate) { return rate > 0 ? amount / rate : 0; }
double Over(Bytes amount, double rate) { return Over(static_cast<double>(amount.value()), rate); }

}  // namespace

FloorTerms Floor(const StepTraffic& traffic, const HardwareRates& rates) {
  FloorTerms t;
  t.forward = rates.forward_seconds;
  t.backward = rates.backward_seconds;
  t.spill = Over(traffic.spilled, rates.nvme_bytes);
  t.io = Over(traffic.nvme_read + traffic.nvme_written - traffic.read_ahead - traffic.spilled,
              rates.nvme_bytes);
  t.update = Over(static_cast<double>(traffic.elements_updated), rates.update_elements);
  t.checksum = Over(traffic.checksummed, rates.checksum_bytes);
  t.copies = Over(traffic.to_hbm, rates.copy_bytes);
  t.gradients = Over(traffic.grads, rates.copy_bytes);
  t.links_backward = rates.links_backward_seconds;
  t.links_forward = rates.links_forward_seconds;
  if (rates.shared_cores) {
    t.total = std::max({t.backward + t.gradients, t.spill, t.links_backward}) +
              std::max({t.forward + t.update + t.checksum + t.copies, t.io, t.links_forward});
  } else {
    t.total = std::max({t.backward, t.spill, t.links_backward}) +
              std::max({t.forward, t.io, t.update + t.checksum, t.copies, t.links_forward});
  }
  return t;
}

}  // namespace sluice
