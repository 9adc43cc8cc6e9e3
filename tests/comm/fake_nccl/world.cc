#include "tests/comm/fake_nccl/world.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>

namespace fake_nccl {

bool World::MakeName(std::string* name) {
  static std::atomic<uint64_t> number{0};
  *name = "/sluice-fake-nccl-" + std::to_string(getpid()) + "-" + std::to_string(number++);
  const int file = shm_open(name->c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
  if (file < 0) return false;
  close(file);
  return true;
}

std::shared_ptr<World> World::Open(const std::string& name, uint32_t ranks) {
  static std::mutex mutex;
  static auto* const worlds = new std::map<std::string, std::weak_ptr<World>>;
  const std::lock_guard lock(mutex);
  if (std::shared_ptr<World> world = (*worlds)[name].lock()) return world;
  const int file = shm_open(name.c_str(), O_RDWR | O_CLOEXEC, 0600);
  if (file < 0) return nullptr;
  void* memory = MAP_FAILED;
  const size_t size = SizeFor(ranks);
  if (ranks <= 64 && ftruncate(file, static_cast<off_t>(size)) == 0)
    memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return nullptr;
  auto world = std::make_shared<World>(name, memory, ranks);
  (*worlds)[name] = world;
  return world;
}

World::World(std::string name, void* memory, uint32_t ranks)
    : name_(std::move(name)),
      ranks_(ranks),
      header_(static_cast<Header*>(memory)),
      rings_(reinterpret_cast<Ring*>(static_cast<std::byte*>(memory) + sizeof(Header))) {}

World::~World() {
  shm_unlink(name_.c_str());
  munmap(header_, SizeFor(ranks_));
}

void World::Join(uint32_t rank) {
  header_->pids[rank] = getpid();
  if (++header_->joined == ranks_) shm_unlink(name_.c_str());
}

bool World::complete() const { return header_->joined == ranks_; }

bool World::Dead(uint32_t rank) const {
  const pid_t pid = header_->pids[rank];
  return pid != 0 && kill(pid, 0) != 0 && errno == ESRCH;
}

size_t World::Write(uint32_t from, uint32_t to, const void* data, size_t bytes) {
  Ring& ring = this->ring(from, to);
  const uint64_t written = ring.written.load(std::memory_order_relaxed);
  const uint64_t read = ring.read.load(std::memory_order_acquire);
  const size_t n = std::min<size_t>(bytes, kRing - (written - read));
  const size_t at = written % kRing, first = std::min(n, kRing - at);
  if (n == 0) return 0;
  std::memcpy(ring.bytes + at, data, first);
  std::memcpy(ring.bytes, static_cast<const std::byte*>(data) + first, n - first);
  ring.written.store(written + n, std::memory_order_release);
  return n;
}

size_t World::Read(uint32_t from, uint32_t to, void* data, size_t bytes) {
  Ring& ring = this->ring(from, to);
  const uint64_t read = ring.read.load(std::memory_order_relaxed);
  const uint64_t written = ring.written.load(std::memory_order_acquire);
  const size_t n = std::min<size_t>(bytes, written - read);
  const size_t at = read % kRing, first = std::min(n, kRing - at);
  if (n == 0) return 0;
  std::memcpy(data, ring.bytes + at, first);
  std::memcpy(static_cast<std::byte*>(data) + first, ring.bytes, n - first);
  ring.read.store(read + n, std::memory_order_release);
  return n;
}

}  // namespace fake_nccl
