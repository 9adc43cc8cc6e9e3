// tests/comm/socket_table.h
//
// A table as a framework supplies it, over sockets between processes of one host: of what is small
// (all-gather, broadcast, send, receive). A process that is gone is seen by its sockets.
//
// Threads: as the table says.

#ifndef SLUICE_TESTS_COMM_SOCKET_TABLE_H_
#define SLUICE_TESTS_COMM_SOCKET_TABLE_H_

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <deque>
#include <mutex>
#include <vector>

#include "comm/comm_table.h"
#include "core/status.h"

namespace sluice {

// A pair for each two ranks, made before there are processes.
class SocketMesh {
 public:
  explicit SocketMesh(uint32_t ranks) : ends_(ranks, std::vector<int>(ranks, -1)) {
    for (uint32_t a = 0; a < ranks; ++a) {
      for (uint32_t b = 0; b < a; ++b) {
        int pair[2];
        SLUICE_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
        ends_[a][b] = pair[0];
        ends_[b][a] = pair[1];
      }
    }
  }
  // In the process of `rank`: the others' ends are closed.
  std::vector<int> Take(uint32_t rank) {
    std::vector<int> own = ends_[rank];
    ends_[rank].assign(own.size(), -1);
    Close();
    return own;
  }
  void Close() {
    for (const auto& ends : ends_) {
      for (const int end : ends) {
        if (end >= 0) close(end);
      }
    }
  }

 private:
  std::vector<std::vector<int>> ends_;  // by rank and other rank
};

class SocketTable {
 public:
  SocketTable(uint32_t rank, std::vector<int> sockets)
      : rank_(rank), sockets_(std::move(sockets)) {}

  sluice_comm_table table() {
    return {
        .struct_size = sizeof(sluice_comm_table),
        .context = this,
        .rank = rank_,
        .ranks = static_cast<uint32_t>(sockets_.size()),
        .start = [](void* self, const sluice_comm_call* call, uint64_t, char*, size_t) -> int32_t {
          static_cast<SocketTable*>(self)->Start(*call);
          return SLUICE_COMM_ENDED;
        },
        .wait = [](void* self, uint64_t, int32_t timeout_ms, char* error, size_t bytes) -> int32_t {
          return static_cast<SocketTable*>(self)->Wait(timeout_ms, error, bytes);
        },
        .abort = [](void* self, const char*) { static_cast<SocketTable*>(self)->Shut(); },
        .close = [](void* self) { static_cast<SocketTable*>(self)->Shut(); },
        .description = "sockets"};
  }

 private:
  struct Transfer {
    uint32_t peer;
    bool sends;
    char* data;
    size_t bytes;
  };
  using Call = std::vector<Transfer>;

  void Start(const sluice_comm_call& call) {
    Call made;
    const auto add = [&](uint32_t peer, bool sends, const sluice_comm_buffer& buffer) {
      if (peer != rank_)
        made.push_back({peer, sends, static_cast<char*>(buffer.data), buffer.bytes});
    };
    for (uint32_t r = 0; r < sockets_.size(); ++r) {
      switch (call.kind) {
        case SLUICE_COMM_ALL_GATHER:
          add(r, true, call.send.buffers[0]);
          add(r, false, call.receive.buffers[r]);
          break;
        case SLUICE_COMM_BROADCAST:
          if (rank_ == call.peer) add(r, true, call.send.buffers[0]);
          if (rank_ != call.peer && r == call.peer) add(r, false, call.receive.buffers[0]);
          break;
        default:
          if (r != call.peer) break;
          if (call.kind == SLUICE_COMM_SEND) add(r, true, call.send.buffers[0]);
          if (call.kind == SLUICE_COMM_RECEIVE) add(r, false, call.receive.buffers[0]);
      }
    }
    const std::lock_guard lock(mutex_);
    calls_.push_back(std::move(made));
  }

  int32_t Wait(int timeout_ms, char* error, size_t bytes) {
    Call* call;
    {
      const std::lock_guard lock(mutex_);
      call = &calls_.front();
    }
    for (bool waited = false;; waited = true) {
      std::vector<pollfd> open;
      for (Transfer& transfer : *call) {
        const int lost = Move(&transfer);
        if (lost != 0) {
          std::snprintf(error, bytes, "rank %u is gone", transfer.peer);
          return SLUICE_COMM_FAILED;
        }
        const auto events = static_cast<int16_t>(transfer.sends ? POLLOUT : POLLIN);
        if (transfer.bytes > 0) open.push_back({sockets_[transfer.peer], events, 0});
      }
      if (open.empty()) {
        const std::lock_guard lock(mutex_);
        calls_.pop_front();
        return SLUICE_COMM_ENDED;
      }
      if (waited) return SLUICE_COMM_PENDING;
      poll(open.data(), open.size(), timeout_ms);
    }
  }

  // As much as goes now; returns whether the peer is gone.
  int Move(Transfer* transfer) {
    while (transfer->bytes > 0) {
      const int socket = sockets_[transfer->peer];
      const ssize_t n =
          transfer->sends
              ? send(socket, transfer->data, transfer->bytes, MSG_DONTWAIT | MSG_NOSIGNAL)
              : recv(socket, transfer->data, transfer->bytes, MSG_DONTWAIT);
      if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
      if (n <= 0) return 1;
      transfer->data += n;
      transfer->bytes -= static_cast<size_t>(n);
    }
    return 0;
  }

  void Shut() {
    for (const int socket : sockets_) {
      if (socket >= 0) shutdown(socket, SHUT_RDWR);
    }
  }

  const uint32_t rank_;
  const std::vector<int> sockets_;  // by rank
  std::mutex mutex_;
  std::deque<Call> calls_;  // guarded by mutex_, but the first is of who waits
};

}  // namespace sluice

#endif  // SLUICE_TESTS_COMM_SOCKET_TABLE_H_
