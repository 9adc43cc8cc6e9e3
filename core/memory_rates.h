// core/memory_rates.h
//
// How fast memory is: bytes a second that threads on some cores read, write and copy of memory on
// some NUMA node, and how long one of them waits for a line of it. Each call measures once; who
// wants a figure calls again and again and takes the median.
//
// Threads: one at a time; each call starts as many as there are cores, and ends them. Memory: taken
// at creation.

#ifndef SLUICE_CORE_MEMORY_RATES_H_
#define SLUICE_CORE_MEMORY_RATES_H_

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/arena.h"
#include "core/memory_resource.h"
#include "core/types.h"

namespace sluice {

class MemoryRates {
 public:
  struct Options {
    std::vector<int> cores;   // hardware threads that work; at least one
    int threads = 1;          // how many of them at a time
    std::optional<int> node;  // where the memory is to lie
    Bytes bytes_of_thread = MiB(64);
  };
  // Errors: ResourceExhausted, if there is no such memory.
  static absl::StatusOr<MemoryRates> Create(const Options& options);

  // Bytes a second of all threads together. What is copied counts once.
  double Read();
  double Write();
  double Copy();
  // Seconds that one thread waits for a line, when the next one's address is in it.
  double Latency();

  // How much lies where it was to, from 0 to 1; nothing if the kernel doesn't say, or no node was
  // asked for.
  std::optional<double> share_on_node() const { return share_on_node_; }

 private:
  explicit MemoryRates(Options options) : options_(std::move(options)) {}
  template <typename Work>
  double Rate(Work work);

  Options options_;
  std::unique_ptr<HugePageResource> resource_ = std::make_unique<HugePageResource>();
  std::vector<Arena> arenas_;  // by thread
  std::optional<double> share_on_node_;
  bool chained_ = false;  // the first thread's memory holds a chain of addresses
};

}  // namespace sluice

#endif  // SLUICE_CORE_MEMORY_RATES_H_
