#include "comm/local_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "core/status.h"

namespace sluice {

namespace {

constexpr int kType = SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK;
constexpr int kRoom = 1 << 20;  // for packets on their way; the system may give less

absl::Status Failed(std::string_view what) { return ErrnoStatus(errno, what); }

absl::StatusOr<Socket> New() {
  Socket socket(::socket(AF_UNIX, kType, 0));
  if (!socket.open()) return Failed("a socket between ranks");
  (void)setsockopt(socket.fd(), SOL_SOCKET, SO_SNDBUF, &kRoom, sizeof(kRoom));
  return socket;
}

// An abstract name begins with a 0.
std::pair<sockaddr_un, socklen_t> AddressOf(std::string_view name) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  SLUICE_CHECK(name.size() + 1 < sizeof(address.sun_path));
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  return {address, static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size())};
}

// Waits for what `events` says. Errors: DeadlineExceeded, the system's.
absl::Status AwaitEvent(int fd, int16_t events, Deadline deadline, const Clock& clock) {
  while (true) {
    const Nanos left = deadline - std::min(clock.Now(), deadline);
    const auto left_ms = std::chrono::ceil<std::chrono::milliseconds>(left).count();
    if (left_ms == 0) return absl::DeadlineExceededError("waits too long for the other ranks");
    pollfd waited{.fd = fd, .events = events, .revents = 0};
    const int found = poll(&waited, 1, static_cast<int>(std::min<int64_t>(left_ms, 1000)));
    if (found > 0) return absl::OkStatus();
    if (found < 0 && errno != EINTR) return Failed("waiting for a socket between ranks");
  }
}

}  // namespace

absl::StatusOr<Socket> Socket::Listen(std::string_view name, int backlog) {
  SLUICE_ASSIGN_OR_RETURN(Socket socket, New());
  const auto [address, size] = AddressOf(name);
  if (bind(socket.fd(), reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
      listen(socket.fd(), backlog) != 0)
    return Failed("listening for other ranks");
  return socket;
}

absl::StatusOr<Socket> Socket::Connect(std::string_view name, Deadline deadline,
                                       const Clock& clock) {
  SLUICE_ASSIGN_OR_RETURN(Socket socket, New());
  const auto [address, size] = AddressOf(name);
  while (connect(socket.fd(), reinterpret_cast<const sockaddr*>(&address), size) != 0) {
    const bool full = errno == EAGAIN || errno == EINTR;  // the other's queue
    if (!full || clock.Now() >= deadline) return Failed("connecting to another rank");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return socket;
}

absl::StatusOr<Socket> Socket::Accept(Deadline deadline, const Clock& clock) const {
  while (true) {
    Socket accepted(accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (accepted.open()) {
      (void)setsockopt(accepted.fd(), SOL_SOCKET, SO_SNDBUF, &kRoom, sizeof(kRoom));
      return accepted;
    }
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
      return Failed("taking in another rank");
    SLUICE_RETURN_IF_ERROR(AwaitEvent(fd_, POLLIN, deadline, clock));
  }
}

void Socket::Close() {
  if (open()) close(std::exchange(fd_, -1));
}

void Socket::Shut() const { (void)shutdown(fd_, SHUT_RDWR); }

absl::StatusOr<Socket::Maker> Socket::maker() const {
  ucred credentials{};
  socklen_t size = sizeof(credentials);
  if (getsockopt(fd_, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0)
    return Failed("asking who a rank is");
  return Maker{.process = credentials.pid, .user = credentials.uid};
}

Socket::Result Socket::Send(std::span<const std::byte> packet) const {
  while (true) {
    const ssize_t sent = send(fd_, packet.data(), packet.size(), MSG_NOSIGNAL);
    if (sent >= 0) return Result::kDone;
    if (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM) return Result::kNotNow;
    if (errno != EINTR) return Result::kEnded;
  }
}

Socket::Result Socket::Receive(std::span<std::byte> to, size_t* size) const {
  while (true) {
    const ssize_t received = recv(fd_, to.data(), to.size(), 0);
    if (received > 0) {
      *size = static_cast<size_t>(received);
      return Result::kDone;
    }
    if (received == 0) return Result::kEnded;
    if (errno == EAGAIN) return Result::kNotNow;
    // A peer that went without reading all: what it sent before comes next.
    if (errno != EINTR && errno != ECONNRESET) return Result::kEnded;
  }
}

absl::Status Socket::ReceiveBy(Deadline deadline, const Clock& clock,
                               std::span<std::byte> to) const {
  size_t size = 0;
  while (true) {
    const Result result = Receive(to, &size);
    if (result == Result::kEnded) return absl::UnavailableError("a rank has ended");
    if (result == Result::kDone) {
      if (size == to.size()) return absl::OkStatus();
      return absl::UnavailableError("another rank does not speak as this one does");
    }
    SLUICE_RETURN_IF_ERROR(AwaitEvent(fd_, POLLIN, deadline, clock));
  }
}

}  // namespace sluice
