// tests/comm/fake_nccl/stream.h
//
// A stream in host memory, and what the fake communicators put on it. A thread runs one thing
// after the other.
//
// Memory comes from malloc, past what tests count.

#ifndef SLUICE_TESTS_COMM_FAKE_NCCL_STREAM_H_
#define SLUICE_TESTS_COMM_FAKE_NCCL_STREAM_H_

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "comm/nccl_api.h"
#include "tests/comm/fake_nccl/world.h"

namespace fake_nccl {

template <typename T>
struct Malloced {
  using value_type = T;
  Malloced() = default;
  template <typename U>
  Malloced(const Malloced<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(std::malloc(n * sizeof(T))); }
  void deallocate(T* at, size_t) { std::free(at); }
  friend bool operator==(Malloced, Malloced) { return true; }
};
template <typename T>
using Vector = std::vector<T, Malloced<T>>;
using Buffer = Vector<std::byte>;

// What the stream's thread and the callers of a communicator share.
struct CommState {
  std::shared_ptr<World> world;
  uint32_t rank = 0;
  bool sees_deaths = false;
  std::atomic<bool> aborted{false};
  std::atomic<sluice::NcclResult> error{sluice::kNcclSuccess};
};

struct Transfer {
  bool sends;
  uint32_t peer;
  std::byte* data;
  size_t bytes;
};
struct Sum {
  const std::byte* own;
  size_t others;  // where in the work's buffer those of the other ranks begin, in their order
  std::byte* to;
  size_t bytes;
  sluice::NcclType type;
};

// One group of calls.
struct Work {
  std::shared_ptr<CommState> comm;  // null: a copy
  Vector<Transfer> transfers;
  Vector<Sum> sums;
  Vector<Transfer> copies;  // `data` is from, `to` below
  Vector<std::byte*> copies_to;
  Buffer buffer;  // transfers that have no data yet are to or from it, in order
  sluice::NcclResult hangs_with = sluice::kNcclSuccess;  // if not, it never ends, and says this
};

class Stream {
 public:
  Stream();
  ~Stream();
  void Push(Work work);
  uint64_t Mark();
  bool Passed(uint64_t mark);

 private:
  void RunAll();
  // Returns when it has run, was aborted, or the stream goes.
  void Run(Work* work);
  bool Progress(Work* work);
  static void Add(const Work& work, const Sum& sum);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Work, Malloced<Work>> queue_;  // this and below guarded by mutex_
  uint64_t pushed_ = 0;
  uint64_t run_ = 0;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

size_t SizeOf(sluice::NcclType type);

}  // namespace fake_nccl

#endif  // SLUICE_TESTS_COMM_FAKE_NCCL_STREAM_H_
