#include "offload/run/planted_bug.h"

#include "core/sim_world.h"

namespace sluice {

bool Planted(const Context& context, PlantedBug bug) {
  const auto* world = dynamic_cast<const SimWorld*>(context.clock);
  return world != nullptr && world->planted_bug() == static_cast<int>(bug);
}

}  // namespace sluice
