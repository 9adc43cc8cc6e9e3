#include "tests/nvme/faulty_kernel.h"

#include <libaio.h>
#include <liburing.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <mutex>
#include <optional>

namespace sluice {

namespace {

constexpr unsigned kNopInjectResult = 1;  // IORING_NOP_INJECT_RESULT, newer than Debian's liburing

struct State {
  std::mutex mutex;
  int fd = -1;
  uint32_t index = 0;
  std::vector<FaultyKernel::Outcome> script;
  size_t used = 0;
  std::map<const iocb*, int> failing;  // of libaio, in flight
  int refusals_left = 0;
  int refusal = 0;
  int submissions = 0;
  int io_uring_setup_error = 0;
  int libaio_setup_error = 0;
  int destroy_error = 0;
  FaultyKernel::Call failing_call{};
  int call_error = 0;
  int call_failures_left = 0;
  int calls_failed = 0;
};

State& Get() {
  static State state;
  return state;
}

// The outcome of the next transfer of the scripted file. With the mutex held.
std::optional<FaultyKernel::Outcome> Next(State& state) {
  if (state.script.empty()) return std::nullopt;
  ++state.used;
  const FaultyKernel::Outcome outcome = state.script.front();
  if (!outcome.again) state.script.erase(state.script.begin());
  return outcome;
}

bool Refused(State& state) {
  ++state.submissions;
  return state.refusals_left > 0 && state.refusals_left-- > 0;
}

using Call = FaultyKernel::Call;

// The errno that this call is to fail with, or 0.
int FailedCall(Call call) {
  State& state = Get();
  const std::lock_guard lock(state.mutex);
  if (call != state.failing_call || state.call_failures_left == 0) return 0;
  --state.call_failures_left;
  ++state.calls_failed;
  return state.call_error;
}

// Makes the entries that the next submission hands over end as the script says. They are looked at
// once, for the ring takes all of them; a submission that is refused takes none.
void Alter(State& state, io_uring* ring) {
  for (unsigned i = ring->sq.sqe_head; i != ring->sq.sqe_tail; ++i) {
    io_uring_sqe* sqe = &ring->sq.sqes[i & *ring->sq.kring_mask];
    if (sqe->opcode == IORING_OP_POLL_ADD || sqe->opcode == IORING_OP_NOP) continue;
    const bool fixed = (sqe->flags & IOSQE_FIXED_FILE) != 0;
    if (fixed ? sqe->fd != static_cast<int>(state.index) : sqe->fd != state.fd) continue;
    const auto outcome = Next(state);
    if (!outcome) return;
    if (outcome->at_most > 0) {
      sqe->len = std::min(sqe->len, static_cast<unsigned>(outcome->at_most));
    }
    if (outcome->error == 0) continue;
    const uint64_t tag = sqe->user_data;
    io_uring_prep_nop(sqe);
    sqe->rw_flags = static_cast<int>(kNopInjectResult);
    sqe->len = static_cast<unsigned>(-outcome->error);
    sqe->user_data = tag;
  }
}

// Whether the submission of `ring` is refused; what goes through is altered first.
bool RefusedRing(io_uring* ring) {
  State& state = Get();
  const std::lock_guard lock(state.mutex);
  if (Refused(state)) return true;
  Alter(state, ring);
  return false;
}

template <typename Call>
ssize_t Transfer(int fd, size_t size, Call call) {
  State& state = Get();
  {
    const std::lock_guard lock(state.mutex);
    const auto outcome = fd == state.fd ? Next(state) : std::nullopt;
    if (outcome && outcome->error != 0) {
      errno = outcome->error;
      return -1;
    }
    if (outcome && outcome->at_most > 0) size = std::min(size, outcome->at_most);
  }
  return call(size);
}

}  // namespace

void FaultyKernel::Script(int fd, uint32_t index, std::vector<Outcome> script) {
  State& state = Get();
  const std::lock_guard lock(state.mutex);
  state.fd = fd;
  state.index = index;
  state.script = std::move(script);
  state.used = 0;
}

size_t FaultyKernel::used() {
  const std::lock_guard lock(Get().mutex);
  return Get().used;
}

void FaultyKernel::RefuseSubmissions(int times, int error) {
  const std::lock_guard lock(Get().mutex);
  Get().refusals_left = times;
  Get().refusal = error;
  Get().submissions = 0;
}

int FaultyKernel::submissions() {
  const std::lock_guard lock(Get().mutex);
  return Get().submissions;
}

void FaultyKernel::FailCalls(Call call, int error, int times) {
  const std::lock_guard lock(Get().mutex);
  Get().failing_call = call;
  Get().call_error = error;
  Get().call_failures_left = times;
  Get().calls_failed = 0;
}

int FaultyKernel::calls_failed() {
  const std::lock_guard lock(Get().mutex);
  return Get().calls_failed;
}

void FaultyKernel::RefuseSetup(int io_uring_error, int libaio_error) {
  const std::lock_guard lock(Get().mutex);
  Get().io_uring_setup_error = io_uring_error;
  Get().libaio_setup_error = libaio_error;
}

void FaultyKernel::RefuseDestroy(int error) {
  const std::lock_guard lock(Get().mutex);
  Get().destroy_error = error;
}

void FaultyKernel::Reset() {
  Script(-1, 0, {});
  RefuseSubmissions(0, 0);
  RefuseSetup(0, 0);
  RefuseDestroy(0);
  FailCalls(Call::kSetup, 0, 0);
}

bool FaultyKernel::CanFailIoUring() {
  io_uring ring{};
  if (io_uring_queue_init(2, &ring, 0) != 0) return false;
  io_uring_sqe* sqe = io_uring_get_sqe(&ring);
  io_uring_prep_nop(sqe);
  sqe->rw_flags = static_cast<int>(kNopInjectResult);
  sqe->len = static_cast<unsigned>(-EIO);
  io_uring_cqe* cqe = nullptr;
  const bool can = io_uring_submit_and_wait(&ring, 1) == 1 && io_uring_peek_cqe(&ring, &cqe) == 0 &&
                   cqe->res == -EIO;
  io_uring_queue_exit(&ring);
  return can;
}

}  // namespace sluice

// The names are ld's. NOLINTBEGIN
extern "C" {

ssize_t __real_pread(int fd, void* at, size_t size, off_t offset);
ssize_t __wrap_pread(int fd, void* at, size_t size, off_t offset) {
  return sluice::Transfer(fd, size, [&](size_t n) { return __real_pread(fd, at, n, offset); });
}

ssize_t __real_pwrite(int fd, const void* at, size_t size, off_t offset);
ssize_t __wrap_pwrite(int fd, const void* at, size_t size, off_t offset) {
  return sluice::Transfer(fd, size, [&](size_t n) { return __real_pwrite(fd, at, n, offset); });
}

int __real_io_setup(int events, io_context_t* context);
int __wrap_io_setup(int events, io_context_t* context) {
  if (const int failed = sluice::FailedCall(sluice::Call::kIoSetup)) return -failed;
  const int error = sluice::Get().libaio_setup_error;
  return error != 0 ? -error : __real_io_setup(events, context);
}

int __real_io_destroy(io_context_t context);
int __wrap_io_destroy(io_context_t context) {
  const int error = sluice::Get().destroy_error;
  return error != 0 ? -error : __real_io_destroy(context);
}

int __real_io_submit(io_context_t context, long n, iocb** blocks);
int __wrap_io_submit(io_context_t context, long n, iocb** blocks) {
  if (const int failed = sluice::FailedCall(sluice::Call::kIoSubmit)) return -failed;
  sluice::State& state = sluice::Get();
  const std::lock_guard lock(state.mutex);
  if (sluice::Refused(state)) return -state.refusal;
  for (long i = 0; i < n; ++i) {
    if (blocks[i]->aio_fildes != state.fd) continue;
    const auto outcome = sluice::Next(state);
    if (!outcome) break;
    if (outcome->at_most > 0) {
      blocks[i]->u.c.nbytes = std::min<unsigned long>(blocks[i]->u.c.nbytes, outcome->at_most);
    }
    if (outcome->error != 0) state.failing[blocks[i]] = outcome->error;
  }
  return __real_io_submit(context, n, blocks);
}

int __real_io_getevents(io_context_t context, long least, long most, io_event* events,
                        timespec* timeout);
int __wrap_io_getevents(io_context_t context, long least, long most, io_event* events,
                        timespec* timeout) {
  if (const int failed = sluice::FailedCall(sluice::Call::kIoGetevents)) return -failed;
  const int n = __real_io_getevents(context, least, most, events, timeout);
  sluice::State& state = sluice::Get();
  const std::lock_guard lock(state.mutex);
  for (int i = 0; i < n; ++i) {
    const auto failing = state.failing.find(events[i].obj);
    if (failing == state.failing.end()) continue;
    events[i].res = static_cast<unsigned long>(static_cast<long>(-failing->second));
    state.failing.erase(failing);
  }
  return n;
}

int __real_io_uring_queue_init_params(unsigned entries, io_uring* ring, io_uring_params* params);
int __wrap_io_uring_queue_init_params(unsigned entries, io_uring* ring, io_uring_params* params) {
  if (const int failed = sluice::FailedCall(sluice::Call::kSetup)) return -failed;
  const int error = sluice::Get().io_uring_setup_error;
  return error != 0 ? -error : __real_io_uring_queue_init_params(entries, ring, params);
}

int __real_io_uring_register_files(io_uring* ring, const int* files, unsigned n);
int __wrap_io_uring_register_files(io_uring* ring, const int* files, unsigned n) {
  const int failed = sluice::FailedCall(sluice::Call::kRegister);
  return failed != 0 ? -failed : __real_io_uring_register_files(ring, files, n);
}

int __real_io_uring_register_buffers(io_uring* ring, const iovec* buffers, unsigned n);
int __wrap_io_uring_register_buffers(io_uring* ring, const iovec* buffers, unsigned n) {
  const int failed = sluice::FailedCall(sluice::Call::kRegister);
  return failed != 0 ? -failed : __real_io_uring_register_buffers(ring, buffers, n);
}

int __real_ppoll(pollfd* fds, nfds_t n, const timespec* timeout, const sigset_t* mask);
int __wrap_ppoll(pollfd* fds, nfds_t n, const timespec* timeout, const sigset_t* mask) {
  errno = sluice::FailedCall(sluice::Call::kPpoll);
  return errno != 0 ? -1 : __real_ppoll(fds, n, timeout, mask);
}

int __real_eventfd(unsigned count, int flags);
int __wrap_eventfd(unsigned count, int flags) {
  errno = sluice::FailedCall(sluice::Call::kEventfd);
  return errno != 0 ? -1 : __real_eventfd(count, flags);
}

int __real_io_uring_submit(io_uring* ring);
int __wrap_io_uring_submit(io_uring* ring) {
  if (const int failed = sluice::FailedCall(sluice::Call::kEnter)) return -failed;
  return sluice::RefusedRing(ring) ? -sluice::Get().refusal : __real_io_uring_submit(ring);
}

int __real_io_uring_submit_and_wait(io_uring* ring, unsigned n);
int __wrap_io_uring_submit_and_wait(io_uring* ring, unsigned n) {
  if (const int failed = sluice::FailedCall(sluice::Call::kEnter)) return -failed;
  return sluice::RefusedRing(ring) ? -sluice::Get().refusal
                                   : __real_io_uring_submit_and_wait(ring, n);
}

int __real_io_uring_submit_and_wait_timeout(io_uring* ring, io_uring_cqe** cqe, unsigned n,
                                            __kernel_timespec* timeout, sigset_t* mask);
int __wrap_io_uring_submit_and_wait_timeout(io_uring* ring, io_uring_cqe** cqe, unsigned n,
                                            __kernel_timespec* timeout, sigset_t* mask) {
  if (const int failed = sluice::FailedCall(sluice::Call::kEnter)) return -failed;
  return sluice::RefusedRing(ring)
             ? -sluice::Get().refusal
             : __real_io_uring_submit_and_wait_timeout(ring, cqe, n, timeout, mask);
}

}  // extern "C"
// NOLINTEND
