#include "comm/supplied.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "comm/local_ops.h"
#include "comm/threaded_communicator.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

constexpr int32_t kWaitMs = 100;  // at a time
// How often a fence is asked: nobody is told when it is complete.
constexpr Nanos kFencePoll = std::chrono::microseconds(100);
// How long an aborted operation may stay under way.
constexpr Nanos kGiveUp = std::chrono::seconds(10);

static_assert(static_cast<int>(CommKind::kAllGather) == SLUICE_COMM_ALL_GATHER &&
              static_cast<int>(CommKind::kReduceScatter) == SLUICE_COMM_REDUCE_SCATTER &&
              static_cast<int>(CommKind::kAllReduce) == SLUICE_COMM_ALL_REDUCE &&
              static_cast<int>(CommKind::kBroadcast) == SLUICE_COMM_BROADCAST &&
              static_cast<int>(CommKind::kAllToAll) == SLUICE_COMM_ALL_TO_ALL &&
              static_cast<int>(CommKind::kSend) == SLUICE_COMM_SEND &&
              static_cast<int>(CommKind::kReceive) == SLUICE_COMM_RECEIVE &&
              static_cast<int>(CommKind::kBarrier) == SLUICE_COMM_BARRIER);

class Supplied final : public ThreadedCommunicator {
 public:
  Supplied(const sluice_comm_table& table, const CommOptions& options, const Clock* clock)
      : ThreadedCommunicator(Rank(table.rank), table.ranks, options, clock),
        table_(table),
        description_(table.description == nullptr ? "no description" : table.description),
        send_(table.ranks),
        receive_(table.ranks) {}
  ~Supplied() override { (void)Close(); }

  absl::Status StartThread() { return ThreadedCommunicator::StartThread(); }

  std::string description() const override {
    return fmt::format("{} ranks, supplied by the framework: {}", ranks(), description_);
  }

 private:
  using Error = std::array<char, 512>;

  absl::Status CarryOut(CommOp* op, Deadline deadline) override {
    absl::Status status;
    if (op->after != nullptr) status = AwaitFence(*op->after, deadline);
    if (status.ok()) status = StartCall(*op);
    if (status.ok()) status = Await(*op, deadline);
    if (!status.ok()) AbortTable();  // the others may not know
    return status;
  }

  absl::Status StartCall(const CommOp& op) {
    for (size_t i = 0; i < op.send.size(); ++i)  // C has no const of what a struct points at
      send_[i] = {const_cast<std::byte*>(op.send[i].data()), op.send[i].size()};
    for (size_t i = 0; i < op.receive.size(); ++i)
      receive_[i] = {op.receive[i].data(), op.receive[i].size()};
    const sluice_comm_call call{.struct_size = sizeof(call),
                                .kind = static_cast<int32_t>(op.kind),
                                .dtype = static_cast<int32_t>(op.type),
                                .peer = op.peer.value(),
                                .reserved = 0,
                                .send = send_.data(),
                                .send_count = op.send.size(),
                                .receive = receive_.data(),
                                .receive_count = op.receive.size()};
    Error error{};
    if (table_.start(table_.context, &call, error.data(), error.size()) == SLUICE_COMM_ENDED)
      return absl::OkStatus();
    return Failed(op, &error);
  }

  absl::Status Await(const CommOp& op, Deadline deadline) {
    Deadline give_up = kForever;
    Error error{};
    while (true) {
      const TimePoint now = clock().Now();
      if (now >= deadline && Break(TooLate(op))) AbortTable();
      if (give_up == kForever && !status().ok()) give_up = now + kGiveUp;
      if (now >= give_up) {
        const absl::Status why = status();
        return absl::Status(
            why.code(),
            fmt::format("{}; the framework does not end {}, whose memory may still be in use",
                        Message(why), OpName(op)));
      }
      const Nanos left = std::min<Nanos>(std::max(deadline, now) - now, give_up - now);
      const auto left_ms = std::chrono::duration_cast<std::chrono::milliseconds>(left).count();
      const auto wait_ms = static_cast<int32_t>(std::clamp<int64_t>(left_ms, 1, kWaitMs));
      const int32_t result = table_.wait(table_.context, wait_ms, error.data(), error.size());
      if (result == SLUICE_COMM_ENDED) return absl::OkStatus();
      if (result != SLUICE_COMM_PENDING) return Failed(op, &error);
    }
  }

  absl::Status AwaitFence(const Fence& fence, Deadline deadline) {
    while (!fence.Complete()) {
      SLUICE_RETURN_IF_ERROR(status());
      if (clock().Now() >= deadline) {
        return absl::DeadlineExceededError(fmt::format(
            "rank {}: the work that an operation was ordered after has not ended", rank().value()));
      }
      std::this_thread::sleep_for(kFencePoll);
    }
    return absl::OkStatus();
  }

  absl::Status TooLate(const CommOp& op) const {
    std::string others;
    for (uint32_t r = 0; r < ranks(); ++r) {
      if (Needs(op, rank(), Rank(r))) others += fmt::format("{}{}", others.empty() ? "" : ", ", r);
    }
    return absl::DeadlineExceededError(
        fmt::format("rank {} waits in {} for one of the ranks {}, which is too long",
                    rank().value(), OpName(op), others));
  }

  absl::Status Failed(const CommOp& op, Error* error) const {
    if (absl::Status first = status(); !first.ok()) return first;
    error->back() = '\0';
    return absl::UnavailableError(fmt::format(
        "rank {}: {}: {}", rank().value(), OpName(op),
        error->front() == '\0' ? "failed, and the framework does not say why" : error->data()));
  }

  void Interrupt(const absl::Status& /*why*/) override { AbortTable(); }
  void Leave() override {
    const std::lock_guard lock(table_mutex_);
    left_ = true;
    if (table_.close != nullptr) table_.close(table_.context);
  }
  // On any thread; close is the last call, whoever aborts meanwhile.
  void AbortTable() {
    const std::lock_guard lock(table_mutex_);
    if (!left_) table_.abort(table_.context);
  }

  const sluice_comm_table table_;
  std::mutex table_mutex_;
  bool left_ = false;  // guarded by table_mutex_
  const std::string description_;
  std::vector<sluice_comm_buffer> send_;  // of the operation under way
  std::vector<sluice_comm_buffer> receive_;
};

absl::Status CheckTable(const sluice_comm_table& table) {
  const auto lacks = [](const char* what) {
    return absl::InvalidArgumentError(fmt::format("the table of the framework's ranks: {}", what));
  };
  if (table.struct_size < sizeof(table)) return lacks("struct_size is too small");
  if (table.start == nullptr) return lacks("start is null");
  if (table.wait == nullptr) return lacks("wait is null");
  if (table.abort == nullptr) return lacks("abort is null");
  if (table.ranks == 0 || table.ranks > kRanksMax) return lacks("ranks must be 1 to 65536");
  if (table.rank >= table.ranks) return lacks("rank must be less than ranks");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeSuppliedCommunicator(
    const sluice_comm_table& table, const CommOptions& options, const Clock* clock) {
  SLUICE_RETURN_IF_ERROR(CheckTable(table));
  auto communicator = std::make_unique<Supplied>(table, options, clock);
  SLUICE_RETURN_IF_ERROR(communicator->StartThread());
  return communicator;
}

}  // namespace sluice
