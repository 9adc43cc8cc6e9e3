#include "comm/supplied.h"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <mutex>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include "comm/op_rules.h"
#include "core/status.h"
#include "core/work_queue.h"
#include "fmt/format.h"

namespace sluice {

namespace {

constexpr int32_t kWaitMs = 100;  // at a time
constexpr Nanos kWait = std::chrono::milliseconds(kWaitMs);
// How often a fence is asked: nobody is told when it is complete.
constexpr Nanos kFencePoll = std::chrono::microseconds(100);
// How long what is under way may stay so when the table was aborted.
constexpr Nanos kGiveUp = std::chrono::seconds(3);

static_assert(static_cast<int>(CommKind::kAllGather) == SLUICE_COMM_ALL_GATHER &&
              static_cast<int>(CommKind::kReduceScatter) == SLUICE_COMM_REDUCE_SCATTER &&
              static_cast<int>(CommKind::kAllReduce) == SLUICE_COMM_ALL_REDUCE &&
              static_cast<int>(CommKind::kBroadcast) == SLUICE_COMM_BROADCAST &&
              static_cast<int>(CommKind::kAllToAll) == SLUICE_COMM_ALL_TO_ALL &&
              static_cast<int>(CommKind::kSend) == SLUICE_COMM_SEND &&
              static_cast<int>(CommKind::kReceive) == SLUICE_COMM_RECEIVE &&
              static_cast<int>(CommKind::kBarrier) == SLUICE_COMM_BARRIER);

class Supplied final : public Communicator {
 public:
  Supplied(const sluice_comm_table& table, const CommOptions& options, const Clock* clock)
      : Communicator(Rank(table.rank), table.ranks, options, clock),
        table_(table),
        description_(table.description == nullptr ? "no description" : table.description),
        free_(options.in_flight) {}
  ~Supplied() override { (void)Close(); }

  absl::Status StartThreads() {
    try {
      starts_ = std::thread([this] { StartAll(); });
      waits_ = std::thread([this] { AwaitAll(); });
    } catch (const std::system_error& e) {
      return absl::ResourceExhaustedError(
          fmt::format("the threads of rank {} can't be started: {}", rank().value(), e.what()));
    }
    return absl::OkStatus();
  }

  std::string description() const override {
    return fmt::format("{} ranks, supplied by the framework: {}", ranks(), description_);
  }

 private:
  using Error = std::array<char, 512>;

  void Start(CommOp* op) override { to_start_.Push(op); }

  // The thread that starts: an operation's status is then whether it was started.
  void StartAll() {
    pthread_setname_np(pthread_self(), "sluice-comm");
    while (CommOp* const op = to_start_.Pop()) {
      {
        std::unique_lock lock(free_mutex_);
        freed_.wait(lock, [this] { return free_ > 0; });
        --free_;
      }
      while (op->after != nullptr && status().ok() && !op->after->Complete())
        std::this_thread::sleep_for(kFencePoll);
      op->started = clock().Now();
      op->status = status();
      if (op->status.ok()) op->status = StartCall(*op);
      under_way_.Push(op);
    }
  }

  // The thread that waits.
  void AwaitAll() {
    pthread_setname_np(pthread_self(), "sluice-wait");
    uint64_t number = 0;
    while (CommOp* const op = under_way_.Pop()) {
      End(op, op->status.ok() ? Await(op, number++) : op->status);
      {
        const std::lock_guard lock(free_mutex_);
        ++free_;
      }
      freed_.notify_one();
    }
  }

  // Null where all are one: C has no spans, nor const of what a struct points at.
  template <typename View>
  static sluice_comm_segments ToC(const Segments<View>& segments,
                                  std::vector<sluice_comm_buffer>* buffers) {
    buffers->clear();
    for (const View& view : segments.views)
      buffers->push_back({const_cast<std::byte*>(view.data()), view.size()});
    return {.buffers = buffers->data(),
            .count = buffers->size(),
            .ends = segments.ends.empty() ? nullptr : segments.ends.data()};
  }

  absl::Status StartCall(const CommOp& op) {
    const sluice_comm_call call{.struct_size = sizeof(call),
                                .tag = op.tag,
                                .kind = static_cast<int32_t>(op.kind),
                                .dtype = static_cast<int32_t>(op.type),
                                .peer = op.peer.value(),
                                .reserved = 0,
                                .send = ToC(op.send, &send_),
                                .receive = ToC(op.receive, &receive_)};
    Error error{};
    const int32_t result =
        table_.start(table_.context, &call, started_, error.data(), error.size());
    if (result == SLUICE_COMM_UNSUPPORTED)
      return Failed(op, &error, {}, absl::StatusCode::kUnimplemented);
    if (result != SLUICE_COMM_ENDED) return Failed(op, &error);
    ++started_;
    return absl::OkStatus();
  }

  absl::Status Await(CommOp* op, uint64_t number) {
    const TimePoint since = clock().Now();  // it is the first in line now
    const Deadline deadline =
        options().timeout > kForever - since ? kForever : since + options().timeout;
    Error error{}, awaited{};
    absl::Status late;  // what is said of it, unless the framework knows better
    while (true) {
      const TimePoint now = clock().Now();
      if (now >= deadline && late.ok() && status().ok()) {
        awaited.back() = '\0';
        late = TooLate(*op, awaited.data());
        AbortTable(late);
      }
      if (give_up_ == kForever && !(late.ok() && status().ok())) give_up_ = now + kGiveUp;
      const Nanos left = std::min<Nanos>(late.ok() ? deadline - now : kWait, give_up_ - now);
      const auto left_ms = std::chrono::duration_cast<std::chrono::milliseconds>(left).count();
      const auto wait_ms = static_cast<int32_t>(std::clamp<int64_t>(left_ms, 1, kWaitMs));
      error.front() = '\0';
      const int32_t result =
          table_.wait(table_.context, number, wait_ms, error.data(), error.size());
      if (result == SLUICE_COMM_ENDED && late.ok()) return absl::OkStatus();
      if (result != SLUICE_COMM_PENDING) return Failed(*op, &error, late);
      awaited = error;
      if (now < give_up_) continue;
      op->memory_lost = true;
      if (!late.ok()) Break(late);
      const absl::Status why = status();
      return absl::Status(
          why.code(),
          fmt::format("{}; the framework does not end {}, whose memory may still be in use",
                      Message(why), OpName(*op)));
    }
  }

  // `awaited`: what the framework says that it waits for, or nothing.
  absl::Status TooLate(const CommOp& op, std::string_view awaited) const {
    std::string others(awaited);
    if (awaited.empty()) others = "one of the ranks";
    for (uint32_t r = 0; r < ranks(); ++r) {
      if (awaited.empty() && Needs(op, rank(), Rank(r)))
        others += fmt::format("{} {}", others.ends_with('s') ? "" : ",", r);
    }
    return absl::DeadlineExceededError(fmt::format(
        "rank {} waits in {} for {}, and has for {} s, which is too long", rank().value(),
        OpName(op), others, std::chrono::duration<double>(options().timeout).count()));
  }

  absl::Status Failed(const CommOp& op, Error* error, const absl::Status& late = {},
                      absl::StatusCode code = absl::StatusCode::kUnavailable) {
    error->back() = '\0';
    const bool silent = error->front() == '\0';
    const absl::Status failed(
        code, fmt::format("rank {}: {}: {}", rank().value(), OpName(op),
                          silent ? "failed, and the framework does not say why" : error->data()));
    if (late.ok()) {
      BreakAll(failed);
    } else {
      Break(silent ? late : failed);  // the table was told already
    }
    return status();  // what came first
  }

  // The others may not know.
  void BreakAll(const absl::Status& why) {
    if (Break(why)) AbortTable(why);
  }
  void Interrupt(const absl::Status& why) override { AbortTable(why); }
  // On any thread; close is the last call, whoever aborts meanwhile.
  void AbortTable(const absl::Status& why) {
    const std::string words(Message(why));
    const std::lock_guard lock(table_mutex_);
    if (!left_) table_.abort(table_.context, words.c_str());
  }

  void Leave() override {
    to_start_.Stop();
    if (starts_.joinable()) starts_.join();
    under_way_.Stop();
    if (waits_.joinable()) waits_.join();
    const std::lock_guard lock(table_mutex_);
    left_ = true;
    if (table_.close != nullptr) table_.close(table_.context);
  }

  const sluice_comm_table table_;
  std::mutex table_mutex_;
  bool left_ = false;  // guarded by table_mutex_
  const std::string description_;
  WorkQueue<CommOp> to_start_;
  WorkQueue<CommOp> under_way_;
  std::mutex free_mutex_;
  std::condition_variable freed_;
  uint32_t free_;                         // places for what is under way; guarded by free_mutex_
  uint64_t started_ = 0;                  // this and below: of the thread that starts
  std::vector<sluice_comm_buffer> send_;  // of the call that is made
  std::vector<sluice_comm_buffer> receive_;
  Deadline give_up_ = kForever;  // of the thread that waits
  std::thread starts_;
  std::thread waits_;
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
  SLUICE_CHECK(options.in_flight > 0);
  SLUICE_RETURN_IF_ERROR(CheckTable(table));
  auto communicator = std::make_unique<Supplied>(table, options, clock);
  SLUICE_RETURN_IF_ERROR(communicator->StartThreads());
  return communicator;
}

}  // namespace sluice
