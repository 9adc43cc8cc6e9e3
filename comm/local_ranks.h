// comm/local_ranks.h
//
// Ranks that are processes of one host, without a framework between them: a table of functions
// (comm_table.h) over Unix sockets. What is small goes through the socket; what is large is read by
// who receives it from the sender's memory, straight to where it belongs (process_vm_readv), and
// where the system forbids that, it goes through the socket too, in pieces. Sums are those of
// ordered_reduce.h.
//
// A rank that ends, or is killed, closes its sockets: so the others know at once, and which.
//
// Every pair of ranks has a socket for each group. Who connects is known by what the kernel says of
// it: only processes of the same user are let in.

#ifndef SLUICE_COMM_LOCAL_RANKS_H_
#define SLUICE_COMM_LOCAL_RANKS_H_

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/comm_table.h"
#include "comm/local_socket.h"
#include "comm/rank.h"
#include "core/clock.h"

namespace sluice {

// One rank, until it is connected. Threads: one at a time.
class LocalRanks {
 public:
  // Where a rank listens, and on which host: text that ends with a 0.
  using Address = std::array<char, 128>;

  // Errors: those of sockets.
  static absl::StatusOr<LocalRanks> Listen(Rank rank, uint32_t ranks);
  const Address& address() const { return address_; }
  uint32_t ranks() const { return ranks_; }

  // Waits for the other ranks, which call it too, with everybody's addresses. Returns this rank's
  // tables, one for each group; who is given a table closes it. Errors: FailedPrecondition if the
  // ranks are not of one host, DeadlineExceeded after `timeout`, and those of sockets.
  absl::StatusOr<std::vector<sluice_comm_table>> Connect(std::span<const Address> by_rank,
                                                         uint32_t groups, Nanos timeout);

 private:
  LocalRanks(Rank rank, uint32_t ranks, Socket socket, const Address& address)
      : rank_(rank), ranks_(ranks), socket_(std::move(socket)), address_(address) {}

  Rank rank_;
  uint32_t ranks_;
  Socket socket_;
  Address address_;
};

}  // namespace sluice

#endif  // SLUICE_COMM_LOCAL_RANKS_H_
