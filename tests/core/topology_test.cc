#include "core/topology.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <thread>

namespace sluice {
namespace {

TEST(TopologyTest, KnowsThisMachine) {
  const absl::StatusOr<Topology> topology = DetectTopology();
  ASSERT_TRUE(topology.ok()) << topology.status();
  EXPECT_GE(topology->cores_allowed, 1);
  EXPECT_GE(topology->cores_machine, topology->cores_allowed);
  EXPECT_GE(topology->numa_nodes, 1);
}

TEST(TopologyTest, RespectsTheAffinityMask) {
  std::thread([] {
    cpu_set_t mask;
    ASSERT_EQ(0, sched_getaffinity(0, sizeof(mask), &mask));
    int first = 0;
    while (!CPU_ISSET(first, &mask)) ++first;
    CPU_ZERO(&mask);
    CPU_SET(first, &mask);
    ASSERT_EQ(0, sched_setaffinity(0, sizeof(mask), &mask));
    const absl::StatusOr<Topology> topology = DetectTopology();
    ASSERT_TRUE(topology.ok()) << topology.status();
    EXPECT_EQ(1, topology->cores_allowed);
  }).join();
}

}  // namespace
}  // namespace sluice
