// comm/local_socket.h
//
// A Unix socket of packets: what is sent at once is received at once.
//
// Threads: Send may be called by several at a time, all else by one.

#ifndef SLUICE_COMM_LOCAL_SOCKET_H_
#define SLUICE_COMM_LOCAL_SOCKET_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/clock.h"

namespace sluice {

class Socket {
 public:
  Socket() = default;  // none
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() { Close(); }
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }

  // Of a name that the kernel keeps, not a file system: it goes with the socket. Errors: the
  // system's.
  static absl::StatusOr<Socket> Listen(std::string_view name, int backlog);
  static absl::StatusOr<Socket> Connect(std::string_view name, Deadline deadline,
                                        const Clock& clock);
  absl::StatusOr<Socket> Accept(Deadline deadline, const Clock& clock) const;

  int fd() const { return fd_; }
  bool open() const { return fd_ >= 0; }
  void Close();
  void Shut() const;  // both ways: the peer reads what was sent, then the end

  // Who made the other end. Errors: the system's.
  struct Maker {
    pid_t process;
    uid_t user;
  };
  absl::StatusOr<Maker> maker() const;

  enum class Result : uint8_t { kDone, kNotNow, kEnded };
  // Never waits. kEnded: nobody receives any more.
  Result Send(std::span<const std::byte> packet) const;
  // Sets the packet's size; kEnded: nothing more comes. A packet is never empty.
  Result Receive(std::span<std::byte> to, size_t* size) const;
  // The same, but waits. Errors: DeadlineExceeded, Unavailable at the end.
  absl::Status ReceiveBy(Deadline deadline, const Clock& clock, std::span<std::byte> to) const;

 private:
  int fd_ = -1;
};

}  // namespace sluice

#endif  // SLUICE_COMM_LOCAL_SOCKET_H_
