// core/numa.h
//
// Which memory is near which cores, GPUs and drives, as the kernel tells it below /sys; which node
// a runtime is to stay on; and how its threads and memory come to be there.
//
// Nothing here fails: what the kernel doesn't say is unknown, and what it refuses is in words, for
// the report. Threads: any.

#ifndef SLUICE_CORE_NUMA_H_
#define SLUICE_CORE_NUMA_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/cgroup.h"
#include "core/types.h"

namespace sluice {

// Numbers of hardware threads or nodes, ascending, from text such as "0-3,8"; empty if it is not of
// that kind.
std::vector<int> ParseNumberList(std::string_view text);

// A node that has memory, and its hardware threads, of which it may have none.
struct NumaNode {
  int number = 0;
  std::vector<int> cores;
};
std::vector<NumaNode> ReadNumaNodes(const FileReader& read);

// The node that a device is nearest to; nothing if the kernel doesn't say. `address` as in
// "0000:3b:00.0". A file system without a block device of its own has none.
std::optional<int> NodeOfPciDevice(const FileReader& read, std::string_view address);
std::optional<int> NodeOfBlockDevice(const FileReader& read, unsigned major, unsigned minor);

// Where threads and memory are to stay. A GPU says the node, or else the drives, if they agree, or
// else the allowed cores, if they are of one node. It must have allowed cores. Cores that are not
// of that node are left to the caller's threads.
struct NumaBinding {
  std::optional<int> node;  // nothing: memory lies where it falls
  std::vector<int> cores;   // for threads; all that are allowed without a node
  std::string reason;       // for the report
};
struct NumaWishes {
  std::vector<int> allowed;                // hardware threads
  std::optional<int> gpu;                  // its node
  std::vector<std::optional<int>> drives;  // theirs
};
NumaBinding ChooseNumaBinding(const std::vector<NumaNode>& nodes, const NumaWishes& wishes);

// The hardware threads that the calling thread may run on; empty if the kernel doesn't say.
std::vector<int> CoresOfThread();

// While it lives, the calling thread runs on the cores of `binding` and takes memory of its node
// first: so do, for good, the threads that it starts and the memory that it touches meanwhile. Not
// bound to single cores, and where the node is full memory is taken elsewhere.
class ScopedNumaBinding {
 public:
  explicit ScopedNumaBinding(const NumaBinding& binding);
  ~ScopedNumaBinding();  // as before
  ScopedNumaBinding(const ScopedNumaBinding&) = delete;
  ScopedNumaBinding& operator=(const ScopedNumaBinding&) = delete;

  const std::string& refused() const { return refused_; }  // empty: it is all as wanted

 private:
  static constexpr size_t kMaskWords = 16;  // of nodes: as many as a kernel can be built for

  std::vector<int> cores_before_;  // empty: unchanged
  bool policy_changed_ = false;
  int policy_before_ = 0;
  unsigned long policy_nodes_before_[kMaskWords] = {};
  std::string refused_;
};

// How much of `memory` lies on `node`, from 0 to 1, of pages looked at here and there; nothing if
// the kernel doesn't say.
std::optional<double> ShareOnNode(ConstMemoryView memory, int node);

}  // namespace sluice

#endif  // SLUICE_CORE_NUMA_H_
