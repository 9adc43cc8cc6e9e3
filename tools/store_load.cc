#include "tools/store_load.h"

#include <sys/resource.h>

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "tools/bench_cases.h"

namespace sluice::tools {
namespace {

constexpr auto kSoon = std::chrono::milliseconds(100);

double ProcessCpuSeconds() {
  rusage use{};
  getrusage(RUSAGE_SELF, &use);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(use.ru_utime) + seconds(use.ru_stime);
}

}  // namespace

// A buffer, and the block that is on its way in it: read, then judged or summed up by the worker,
// then sealed there and written.
class StoreLoad::Slot final : public BlockTransfer, public Task, public Event {
 public:
  Slot(StoreLoad* load, MemoryView buffer) : load_(load), buffer_(buffer) {}

  void StartRead(BlockIndex block) {
    work_ = Work::kVerify;
    judged_ = load_->written_[block.value()];
    begun_ = load_->clock_->Now();
    load_->store_->StartRead(this, block, buffer_, IoPriority::kNormal);
  }
  void PrepareWrite(BlockIndex block) {
    work_ = Work::kSeal;
    load_->store_->PrepareWrite(this, block, buffer_);
    load_->worker_->Submit(this);
  }

  void OnDone() override {  // of the transfer
    load_->latency_->Add((load_->clock_->Now() - begun_).count());
    if (!status().ok()) return End(status());
    load_->moved_ += static_cast<int64_t>(data().size());
    if (work_ == Work::kVerify) return load_->worker_->Submit(this);
    load_->written_[block().value()] = true;
    End(absl::OkStatus());
  }

  void Run() override {  // on the worker
    if (work_ == Work::kSeal) {
      BlockStore::Seal(this);
    } else if (judged_) {
      verdict_ = BlockStore::Verify(*this);
    } else {
      verdict_ = absl::OkStatus();
      for (uint32_t p = 0; p < pieces().count(); ++p) Keep(pieces().Sums(data(), p));
    }
    load_->inbox_.Post(this);
  }

  void Handle() override {  // of what the worker did
    if (work_ == Work::kSeal) {
      begun_ = load_->clock_->Now();
      return load_->store_->StartWrite(this, IoPriority::kNormal);
    }
    if (load_->mode_ != IoMode::kMixed || !verdict_.ok()) return End(verdict_);
    PrepareWrite(block());
  }

 private:
  enum class Work { kVerify, kSeal };

  void End(const absl::Status& status) {
    load_->status_.Update(status);
    --load_->under_way_;
    if (load_->Begin(this)) ++load_->under_way_;
  }

  StoreLoad* const load_;
  const MemoryView buffer_;
  Work work_ = Work::kVerify;
  bool judged_ = false;
  absl::Status verdict_;
  TimePoint begun_{0};
};

StoreLoad::StoreLoad(BlockStore* store, Waker* waker, std::unique_ptr<Executor> worker,
                     const Clock* clock)
    : store_(store), clock_(clock), written_(store->block_count()), worker_(std::move(worker)) {
  inbox_.SetWaker(waker);
}

StoreLoad::~StoreLoad() = default;

absl::StatusOr<std::unique_ptr<StoreLoad>> StoreLoad::Create(BlockStore* store, IoEngine* engine,
                                                             const std::vector<MemoryView>& buffers,
                                                             const Clock* clock) {
  SLUICE_CHECK(buffers.size() >= 2);
  SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<Executor> worker, MakeExecutor(1));
  std::unique_ptr<StoreLoad> load(new StoreLoad(store, engine, std::move(worker), clock));
  for (const MemoryView buffer : buffers)
    load->slots_.push_back(std::make_unique<Slot>(load.get(), buffer));
  return load;
}

bool StoreLoad::Begin(Slot* slot) {
  if (!status_.ok() || blocks_left_ == 0 || clock_->Now() >= end_) return false;
  --blocks_left_;
  const BlockIndex block(next_);
  next_ = (next_ + 1) % static_cast<uint32_t>(store_->block_count());
  if (mode_ == IoMode::kWrite) {
    slot->PrepareWrite(block);
  } else {
    slot->StartRead(block);
  }
  return true;
}

absl::StatusOr<StoreLoadResult> StoreLoad::Run(IoMode mode, std::optional<double> seconds,
                                               Histogram* latency) {
  mode_ = mode;
  latency_ = latency;
  status_ = absl::OkStatus();
  moved_ = 0;
  blocks_left_ = seconds ? SIZE_MAX : store_->block_count();
  const double cpu = ProcessCpuSeconds();
  const TimePoint begin = clock_->Now();
  end_ = seconds ? begin + Nanos(static_cast<int64_t>(*seconds * 1e9)) : kForever;
  for (const auto& slot : slots_) {
    if (Begin(slot.get())) ++under_way_;
  }
  while (under_way_ > 0) {
    inbox_.HandleAll();
    store_->Poll(inbox_.empty() ? clock_->Now() + kSoon : kNoWait);
  }
  SLUICE_RETURN_IF_ERROR(status_);
  return StoreLoadResult{.bytes = Bytes(moved_),
                         .seconds = Seconds(clock_->Now() - begin),
                         .cpu_seconds = ProcessCpuSeconds() - cpu};
}

}  // namespace sluice::tools
