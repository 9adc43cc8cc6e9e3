// tests/nvme/faulty_kernel.h
//
// A kernel that fails as a test says: ld's --wrap puts it between the engines and the calls that
// they make of the C library, liburing and libaio. What it isn't told to fail goes through.
//
// Threads: the script is set while nothing is in flight; transfers may take from it on any thread.

#ifndef SLUICE_TESTS_NVME_FAULTY_KERNEL_H_
#define SLUICE_TESTS_NVME_FAULTY_KERNEL_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sluice {

class FaultyKernel {
 public:
  // What becomes of one system call's worth of a transfer.
  struct Outcome {
    int error = 0;       // the errno it fails with, if not 0
    size_t at_most = 0;  // bytes it moves, if not 0
    bool again = false;  // all that follow end like this one
  };

  // The next transfers of the file whose descriptor is `fd`, which an engine knows as number
  // `index`, end like `script`, and those after it as usual.
  static void Script(int fd, uint32_t index, std::vector<Outcome> script);
  // Outcomes of the script that were used.
  static size_t used();

  // The next `times` submissions of io_uring or libaio are refused with `error`.
  static void RefuseSubmissions(int times, int error);
  static int submissions();  // since then, the refused ones included

  // Calls about a whole queue. kEnter is whatever enters io_uring.
  enum class Call {
    kSetup,
    kRegister,
    kEnter,
    kIoSetup,
    kIoSubmit,
    kIoGetevents,
    kPpoll,
    kEventfd
  };
  static constexpr int kCalls = 8;
  // The next `times` of `call` fail with `error`.
  static void FailCalls(Call call, int error, int times);
  static int calls_failed();

  // Setting up io_uring and libaio fails with these, if not 0.
  static void RefuseSetup(int io_uring_error, int libaio_error);

  // Giving libaio's queue back fails with this, if not 0.
  static void RefuseDestroy(int error);

  // All as usual again.
  static void Reset();

  // Whether io_uring here can be made to end a transfer with an error of choice (Linux 6.10).
  static bool CanFailIoUring();
};

}  // namespace sluice

#endif  // SLUICE_TESTS_NVME_FAULTY_KERNEL_H_
