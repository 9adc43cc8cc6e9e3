#include "comm/local_ranks.h"

#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "comm/local_group.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

constexpr size_t kNameMax = 64;
constexpr uint64_t kMagic = 0x31736B6E61725353;  // this way of speaking, and its version

// What two ranks say to each other first: who they are, and something to be read from memory.
struct Hello {
  uint64_t magic;
  uint32_t rank;
  uint32_t group;
  uint64_t proof_at;
  uint64_t proof;
};
struct Verdict {
  uint64_t readable;  // 1: the proof was read
};

template <typename T>
std::span<std::byte> BytesOf(T* value) {
  return std::as_writable_bytes(std::span(value, 1));
}

// The same on all processes that can reach each other by names of sockets, and on no others.
std::string Host() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot;
  file >> boot;
  struct stat network {};
  if (boot.empty() || stat("/proc/self/ns/net", &network) != 0) return "";
  return fmt::format("{}/{}", boot, network.st_ino);
}

absl::StatusOr<uint64_t> Random() {
  uint64_t value = 0;
  if (getrandom(&value, sizeof(value), 0) != sizeof(value))
    return ErrnoStatus(errno, "random numbers");
  return value;
}

absl::Status Say(const Socket& socket, ConstMemoryView what) {
  // Nothing is under way: there is room.
  if (socket.Send(what) == Socket::Result::kDone) return absl::OkStatus();
  return absl::UnavailableError("a rank has ended");
}

bool ReadsProof(pid_t process, const Hello& theirs) {
  uint64_t found = 0;
  const iovec to{&found, sizeof(found)};
  const iovec from{reinterpret_cast<void*>(theirs.proof_at), sizeof(found)};
  return process_vm_readv(process, &to, 1, &from, 1, 0) == sizeof(found) && found == theirs.proof;
}

absl::Status CheckHello(const Hello& hello, uint32_t ranks, uint32_t groups) {
  if (hello.magic == kMagic && hello.rank < ranks && hello.group < groups) return absl::OkStatus();
  return absl::FailedPreconditionError("another rank is of another version");
}

}  // namespace

absl::StatusOr<LocalRanks> LocalRanks::Listen(Rank rank, uint32_t ranks) {
  const std::string host = Host();
  if (host.empty()) return absl::UnavailableError("this host does not say which one it is");
  SLUICE_ASSIGN_OR_RETURN(const uint64_t first, Random());
  SLUICE_ASSIGN_OR_RETURN(const uint64_t second, Random());
  const std::string name = fmt::format("sluice-{:016x}{:016x}", first, second);
  SLUICE_ASSIGN_OR_RETURN(Socket socket, Socket::Listen(name, 4096));
  const std::string text = fmt::format("{} {}", host, name);
  Address address{};
  SLUICE_CHECK(text.size() < address.size());
  std::ranges::copy(text, address.begin());
  return LocalRanks(rank, ranks, std::move(socket), address);
}

absl::StatusOr<std::vector<sluice_comm_table>> LocalRanks::Connect(std::span<const Address> by_rank,
                                                                   uint32_t groups, Nanos timeout) {
  SLUICE_CHECK(by_rank.size() == ranks_);
  const SteadyClock clock;
  const Deadline deadline = clock.Now() + timeout;
  const auto split = [](const Address& address) {
    const std::string text(address.data(), strnlen(address.data(), address.size()));
    const size_t space = std::min(text.find(' '), text.size());
    return std::pair(text.substr(0, space), text.substr(std::min(space + 1, text.size())));
  };
  for (uint32_t r = 0; r < ranks_; ++r) {
    if (split(by_rank[r]).second.size() > kNameMax)
      return absl::InvalidArgumentError(fmt::format("the address of rank {} is none", r));
    if (split(by_rank[r]).first == split(address_).first) continue;
    return absl::FailedPreconditionError(fmt::format(
        "ranks {} and {} are on different hosts, or in containers of their own", rank_.value(), r));
  }
  SLUICE_ASSIGN_OR_RETURN(const uint64_t proof, Random());
  std::vector<std::vector<LocalGroup::Peer>> peers(groups);
  std::vector<std::vector<Hello>> hellos(groups, std::vector<Hello>(ranks_));
  for (auto& group : peers) group.resize(ranks_);
  const auto own = [&](uint32_t group) {
    return Hello{.magic = kMagic,
                 .rank = rank_.value(),
                 .group = group,
                 .proof_at = reinterpret_cast<uint64_t>(&proof),
                 .proof = proof};
  };
  for (uint32_t g = 0; g < groups; ++g) {
    for (uint32_t r = 0; r < rank_.value(); ++r) {
      SLUICE_ASSIGN_OR_RETURN(peers[g][r].socket,
                              Socket::Connect(split(by_rank[r]).second, deadline, clock));
      Hello hello = own(g);
      SLUICE_RETURN_IF_ERROR(Say(peers[g][r].socket, BytesOf(&hello)));
    }
  }
  for (uint32_t left = groups * (ranks_ - 1 - rank_.value()); left > 0;) {
    SLUICE_ASSIGN_OR_RETURN(Socket socket, socket_.Accept(deadline, clock));
    SLUICE_ASSIGN_OR_RETURN(const Socket::Maker maker, socket.maker());
    if (maker.user != geteuid()) {  // a stranger
      if (clock.Now() >= deadline) return absl::DeadlineExceededError("only strangers come");
      continue;
    }
    Hello hello{};
    SLUICE_RETURN_IF_ERROR(socket.ReceiveBy(deadline, clock, BytesOf(&hello)));
    SLUICE_RETURN_IF_ERROR(CheckHello(hello, ranks_, groups));
    Hello reply = own(hello.group);
    SLUICE_RETURN_IF_ERROR(Say(socket, BytesOf(&reply)));
    hellos[hello.group][hello.rank] = hello;
    peers[hello.group][hello.rank].socket = std::move(socket);
    --left;
  }
  for (uint32_t g = 0; g < groups; ++g) {
    for (uint32_t r = 0; r < ranks_; ++r) {
      LocalGroup::Peer& peer = peers[g][r];
      if (r == rank_.value()) continue;
      if (r < rank_.value()) {
        SLUICE_RETURN_IF_ERROR(peer.socket.ReceiveBy(deadline, clock, BytesOf(&hellos[g][r])));
        SLUICE_RETURN_IF_ERROR(CheckHello(hellos[g][r], ranks_, groups));
      }
      SLUICE_ASSIGN_OR_RETURN(const Socket::Maker maker, peer.socket.maker());
      if (maker.user != geteuid())
        return absl::PermissionDeniedError(fmt::format("rank {} is another user's", r));
      peer.process = maker.process;
      peer.exit = Socket(static_cast<int>(syscall(SYS_pidfd_open, maker.process, 0)));
      peer.readable = ReadsProof(maker.process, hellos[g][r]);
      Verdict verdict{.readable = peer.readable ? 1u : 0u};
      SLUICE_RETURN_IF_ERROR(Say(peer.socket, BytesOf(&verdict)));
    }
  }
  std::vector<sluice_comm_table> tables;
  tables.reserve(groups);
  for (uint32_t g = 0; g < groups; ++g) {
    for (uint32_t r = 0; r < ranks_; ++r) {
      if (r == rank_.value()) continue;
      Verdict verdict{};
      SLUICE_RETURN_IF_ERROR(peers[g][r].socket.ReceiveBy(deadline, clock, BytesOf(&verdict)));
      peers[g][r].reads = verdict.readable == 1;
    }
  }
  for (auto& group : peers) tables.push_back((new LocalGroup(rank_, std::move(group)))->table());
  return tables;
}

}  // namespace sluice
