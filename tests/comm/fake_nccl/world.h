// tests/comm/fake_nccl/world.h
//
// What the ranks of one fake communicator share: memory with a ring of bytes from each rank to each
// other. Each process has it once. A World is named by the unique id; its name is gone when all
// have come.
//
// Threads: rings have one writer and one reader; the rest any.

#ifndef SLUICE_TESTS_COMM_FAKE_NCCL_WORLD_H_
#define SLUICE_TESTS_COMM_FAKE_NCCL_WORLD_H_

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace fake_nccl {

class World {
 public:
  // Makes a name that nobody has; false if shared memory can't be had.
  static bool MakeName(std::string* name);
  // Null if there is no such world.
  static std::shared_ptr<World> Open(const std::string& name, uint32_t ranks);

  World(std::string name, void* memory, uint32_t ranks);
  ~World();

  void Join(uint32_t rank);
  bool complete() const;  // all have joined
  // Whether the process of a rank that has joined is gone.
  bool Dead(uint32_t rank) const;
  uint32_t ranks() const { return ranks_; }

  // How much of `bytes` went in, or came out.
  size_t Write(uint32_t from, uint32_t to, const void* data, size_t bytes);
  size_t Read(uint32_t from, uint32_t to, void* data, size_t bytes);

 private:
  static constexpr size_t kRing = 16 << 10;
  struct alignas(64) Ring {
    std::atomic<uint64_t> written;
    std::atomic<uint64_t> read;
    std::byte bytes[kRing];
  };
  struct alignas(64) Header {
    std::atomic<uint32_t> joined;
    std::atomic<pid_t> pids[64];
  };
  static size_t SizeFor(uint32_t ranks) { return sizeof(Header) + sizeof(Ring) * ranks * ranks; }
  Ring& ring(uint32_t from, uint32_t to) { return rings_[from * ranks_ + to]; }

  const std::string name_;
  const uint32_t ranks_;
  Header* const header_;
  Ring* const rings_;
};

}  // namespace fake_nccl

#endif  // SLUICE_TESTS_COMM_FAKE_NCCL_WORLD_H_
