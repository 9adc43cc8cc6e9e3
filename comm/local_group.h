// comm/local_group.h
//
// A group of ranks of one host, as one of them sees it, once all are connected: what is behind the
// table of local_ranks.h.
//
// An operation is one exchange between every two ranks that it concerns, or for an all-reduce two.
// In an exchange a rank offers each other what it has for it: the call, so that the other sees
// whether it is the same one, and the bytes if they are few; or where they lie, for the other to
// read, which says when it has. What comes from one rank comes in order, and an operation ends here
// when all that belongs to it has come: so nothing need be told apart by number.

#ifndef SLUICE_COMM_LOCAL_GROUP_H_
#define SLUICE_COMM_LOCAL_GROUP_H_

#include <poll.h>
#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "comm/comm_table.h"
#include "comm/local_call.h"
#include "comm/local_socket.h"
#include "comm/pieces.h"
#include "comm/rank.h"
#include "core/ring_queue.h"

namespace sluice {

class LocalGroup {
 public:
  struct Peer {
    Socket socket;
    Socket exit;  // a pidfd: a forked child of the process may keep the socket open beyond its end
    pid_t process = 0;
    bool readable = false;  // this rank may read its memory
    bool reads = false;     // it may read this rank's
  };

  struct Limits {
    size_t inline_max = size_t{32} << 10;  // more is read directly, or sent in pieces
    size_t piece_max = size_t{64} << 10;   // at least inline_max
    size_t read_max = size_t{4} << 20;     // at a time: between, an abort is noticed
  };

  // By rank; this rank's own has no socket.
  LocalGroup(Rank rank, std::vector<Peer> peers) : LocalGroup(rank, std::move(peers), Limits()) {}
  LocalGroup(Rank rank, std::vector<Peer> peers, const Limits& limits);
  LocalGroup(const LocalGroup&) = delete;
  LocalGroup& operator=(const LocalGroup&) = delete;

  // Whose context is this group, which its close ends.
  sluice_comm_table table();

 private:
  enum class Packet : uint32_t { kOffer, kPiece, kHaveRead, kAborted, kLeft };
  // What a packet begins with. An offer's bytes follow, if they are few.
  struct Head {
    Packet packet;
    uint32_t kind;
    uint32_t type;
    uint32_t root;
    uint64_t tag;
    uint64_t bytes;
    uint64_t list;  // of the pieces, in the sender's memory; 0: they come through the socket
    uint64_t count;
  };

  // What is between this rank and another, in the exchange that runs.
  struct Link : Peer {
    explicit Link(Peer peer) : Peer(std::move(peer)) {}
    enum class Out : uint8_t { kNothing, kOffer, kPieces, kReads };
    enum class In : uint8_t { kNothing, kOffer, kPieces };
    Out out = Out::kNothing;
    In in = In::kNothing;
    size_t sent = 0;
    size_t received = 0;
    bool owes_word = false;                    // that it has read
    bool left = false;                         // it said so
    bool ended = false;                        // nothing more comes through the socket
    std::deque<std::vector<std::byte>> early;  // packets that came before they were wanted
  };

  int32_t Start(const sluice_comm_call& given);
  int32_t Wait(int32_t timeout_ms, char* error, size_t error_bytes);
  void Abort(const char* words);
  void Leave();

  bool NextExchange();  // false: the operation has ended
  void EndCall();
  void AddCall();

  // Each goes on as far as it can. False: the group has failed, failure_ says how.
  bool SendTo(uint32_t rank);
  bool ReceiveFrom(uint32_t rank);
  bool OnPacket(uint32_t rank, const std::byte* packet, size_t size);
  bool OnOffer(uint32_t rank, const Head& head, const std::byte* data, size_t size);
  bool Read(uint32_t rank, const Head& head);
  bool OnEnd(uint32_t rank);
  bool Sleep(int32_t timeout_ms);
  void SayLast(std::span<const std::byte> packet);
  bool Fail(std::string why);
  std::string WhyFailed();  // empty: it has not
  std::string Named(uint32_t rank, const char* what) const;
  Head Described(Packet packet) const;
  bool Ready() const;
  std::string AwaitedRanks() const;

  const uint32_t rank_;
  const Limits limits_;
  const std::string description_;
  std::vector<Link> links_;  // by rank
  Socket wake_;              // an eventfd: written to by Abort
  std::mutex ending_;        // held by Abort until every socket is shut
  std::atomic<bool> aborted_{false};
  std::mutex mutex_;
  std::string failure_;                          // guarded by mutex_: the first, which stays
  RingQueue<std::unique_ptr<LocalCall>> calls_;  // guarded by mutex_: started, not waited for
  RingQueue<std::unique_ptr<LocalCall>>
      spare_;  // guarded by mutex_: in turn, so that all grow alike
  // All below: the thread that waits.
  std::unique_ptr<LocalCall> call_;  // that runs, or null
  std::vector<pollfd> waited_;
  Pieces theirs_;  // what is read
  std::vector<std::byte> packet_;
};

}  // namespace sluice

#endif  // SLUICE_COMM_LOCAL_GROUP_H_
