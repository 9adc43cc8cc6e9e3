// quick probe
#include "bench/scale_cases.h"
#include "core/status.h"
#include "fmt/format.h"
#include <cstdlib>
using namespace sluice;
int main(int argc, char** argv) {
  ScaleCase c; c.machine = *FindMachine(argv[1]); c.hosts = atoi(argv[2]); c.stage = atoi(argv[3]);
  c.states = static_cast<Tier>(atoi(argv[4])); c.params = static_cast<Tier>(atoi(argv[5]));
  c.parameters = atof(argv[6]); c.units = atoi(argv[7]); c.tokens = atof(argv[8]); c.mirrored = atoi(argv[9]);
  if (argc > 10) c.overlap = atoi(argv[10]);
  if (argc > 11) c.free_network = atoi(argv[11]);
  if (argc > 12) c.cells_of_shard = atoi(argv[12]);
  auto r = Simulate(c);
  if (!r.ok()) { fmt::print("error {}\n", Message(r.status())); return 1; }
  const auto& f = r->floor;
  fmt::print("ranks {} step {:.4f} floor {:.4f} ratio {:.3f} waited {:.4f} | fwd {:.4f} bwd {:.4f} io {:.4f} upd {:.4f} chk {:.4f} copies {:.4f} lb {:.4f} lf {:.4f} | scale {:.0f} sent {:.2f}GB real {:.1f}s ctrl {:.3f}s digest {:x}\n",
    c.ranks(), r->step, f.total, r->ratio(), r->waited, f.forward, f.backward, f.io, f.update, f.checksum, f.copies, f.links_backward, f.links_forward, r->scale, r->sent.value()/1e9, r->training.real_seconds, r->training.control_seconds, r->training.digest);
  TimePoint at = r->training.times[0].begin;
  for (auto t : r->training.times[0].steps) { fmt::print("{:.4f} ", Seconds(t - at)); at = t; } fmt::print("\n");
}
