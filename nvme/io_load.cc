#include "nvme/io_load.h"

#include <time.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "nvme/segments.h"
#include "nvme/transfer.h"

namespace sluice {

namespace {

constexpr Bytes kCell = kExtentAlignment;
constexpr size_t kCellWords = kCell.size() / sizeof(uint64_t);

double ProcessCpuSeconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) / 1e9;
}

uint64_t Mix(uint64_t x) {  // the finalizer of SplitMix64
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

// A cell holds the tile with every word changed by its key.
void FillCell(const uint64_t* tile, uint64_t key, std::byte* cell) {
  uint64_t words[kCellWords];
  for (size_t i = 0; i < kCellWords; ++i) words[i] = tile[i] ^ key;
  std::memcpy(cell, words, sizeof(words));
}

// Where the first wrong byte is; kCell if none is.
size_t FirstWrong(const uint64_t* tile, uint64_t key, const std::byte* cell) {
  uint64_t words[kCellWords];
  std::memcpy(words, cell, sizeof(words));
  uint64_t wrong = 0;
  for (size_t i = 0; i < kCellWords; ++i) wrong |= words[i] ^ tile[i] ^ key;
  if (wrong == 0) return kCell.size();
  FillCell(tile, key, reinterpret_cast<std::byte*>(words));
  const auto* right = reinterpret_cast<const std::byte*>(words);
  return static_cast<size_t>(std::mismatch(cell, cell + kCell.size(), right).first - cell);
}

}  // namespace

// One run: its transfers, and what is known of it so far.
class IoLoad::Running {
 public:
  Running(IoLoad* load, const IoPattern& pattern, IoEngine* engine, size_t transfers)
      : load_(load), pattern_(pattern), engine_(engine), ops_(transfers), places_(transfers) {
    for (size_t i = 0; i < transfers; ++i) {
      ops_[i].file = FileIndex(kIdle);
      ops_[i].memory = load->memory_.subspan(i * pattern.request.size(), pattern.request.size());
      free_.push_back(transfers - 1 - i);
    }
    done_.resize(transfers);
    todo_.reserve(transfers);
  }

  absl::StatusOr<IoLoadResult> Go() {
    const double cpu = ProcessCpuSeconds();
    const TimePoint begin = load_->clock_->Now();
    last_ = begin;
    for (;;) {
      Begin();
      if (free_.size() == ops_.size()) break;
      const size_t n = engine_->Poll(done_, kForever);
      for (size_t i = 0; i < n; ++i) End(done_[i]);
    }
    if (!status_.ok()) return status_;
    if (stopped()) return absl::CancelledError("stopped");
    result_.seconds = Seconds(last_ - begin);
    result_.cpu_seconds = ProcessCpuSeconds() - cpu;
    return std::move(result_);
  }

 private:
  bool stopped() const { return pattern_.stop != nullptr && pattern_.stop->load(); }
  bool GoesOn() const {
    return status_.ok() && begun_[0] + begun_[1] < pattern_.bytes_max && !stopped() &&
           (pattern_.deadline == kForever || load_->clock_->Now() < pattern_.deadline);
  }
  bool InFlight(size_t i) const { return ops_[i].file.value() != kIdle; }

  // Fills the places that are free, and gives the engine all of these at once.
  void Begin() {
    if (!GoesOn()) return;
    todo_.clear();
    while (!free_.empty() && begun_[0] + begun_[1] < pattern_.bytes_max) {
      const IoKind kind = NextKind();
      IoOp& op = ops_[free_.back()];
      if (!TakePlace(kind, &op, &places_[free_.back()])) break;
      free_.pop_back();
      Prepare(&op);
      begun_[static_cast<size_t>(kind)] += pattern_.request;
      run_ += pattern_.request;
      todo_.push_back(&op);
    }
    size_t taken = 0;
    while (taken < todo_.size()) {  // always all of them, unless the engine has less room
      const size_t n = engine_->Submit(std::span(todo_).subspan(taken));
      taken += n;
      if (n > 0) continue;
      const size_t ended = engine_->Poll(done_, kForever);
      for (size_t i = 0; i < ended; ++i) End(done_[i]);
    }
  }

  IoKind NextKind() {
    if (pattern_.read_share >= 1) return IoKind::kRead;
    if (pattern_.read_share <= 0) return IoKind::kWrite;
    if (run_ < pattern_.run) return kind_;
    run_ = Bytes(0);
    const double reads = static_cast<double>(begun_[0].value()) / pattern_.read_share;
    const double writes = static_cast<double>(begun_[1].value()) / (1 - pattern_.read_share);
    kind_ = reads <= writes ? IoKind::kRead : IoKind::kWrite;  // which is behind
    return kind_;
  }

  bool Free(const Stretch& stretch, Bytes offset) const {
    const int64_t begin = stretch.offset.value() + offset.value();
    for (size_t i = 0; i < ops_.size(); ++i) {
      if (InFlight(i) && ops_[i].file == stretch.file &&
          ops_[i].offset.value() < begin + pattern_.request.value() &&
          begin < ops_[i].offset.value() + pattern_.request.value())
        return false;
    }
    return true;
  }

  // The next place of `kind` that nobody is at; false if there is none now.
  bool TakePlace(IoKind kind, IoOp* op, Place* place) {
    Place* next = &load_->next_[static_cast<size_t>(kind)];
    for (size_t tries = 0; tries <= load_->order_.size(); ++tries) {
      const Stretch& stretch = load_->order_[next->stretch];
      if (next->offset + pattern_.request <= load_->stretch_ && Free(stretch, next->offset)) {
        op->kind = kind;
        op->file = stretch.file;
        op->offset = FileOffset(stretch.offset.value() + next->offset.value());
        *place = *next;
        next->offset += pattern_.request;
        return true;
      }
      *next = {.stretch = (next->stretch + 1) % load_->order_.size(), .offset = Bytes(0)};
    }
    return false;
  }

  std::span<uint32_t> PassesOf(const IoOp& op) {
    const Place& place = places_[static_cast<size_t>(&op - ops_.data())];
    const auto cell = static_cast<size_t>(place.offset / kCell);
    return std::span(load_->passes_)
        .subspan(load_->order_[place.stretch].first_cell + cell,
                 static_cast<size_t>(pattern_.request / kCell));
  }
  uint64_t KeyOf(const IoOp& op, size_t cell, uint32_t pass) const {
    const uint64_t at = static_cast<uint64_t>(op.offset.value() / kCell.value()) + cell;
    return Mix(Mix(load_->seed_ + op.file.value()) + Mix(at << 32 | pass));
  }
  const uint64_t* tile() const { return load_->tile_.data(); }

  void Prepare(IoOp* op) {
    if (op->kind == IoKind::kRead) return;
    const std::span<uint32_t> passes = PassesOf(*op);
    const bool known = pattern_.check == IoCheck::kData;
    const uint32_t pass = known ? ++load_->pass_ : 0;
    std::ranges::fill(passes, pass);
    if (!known) return;
    for (size_t c = 0; c < passes.size(); ++c)
      FillCell(tile(), KeyOf(*op, c, pass), op->memory.data() + c * kCell.size());
  }

  void End(IoOp* op) {
    last_ = std::max(last_, op->completed);
    IoLoadResult::Kind& kind = result_.kinds[static_cast<size_t>(op->kind)];
    if (op->status.ok()) {
      kind.bytes += op->transferred;
      kind.latency_ns.Add((op->completed - op->submitted).count());
      if (op->kind == IoKind::kRead && pattern_.check == IoCheck::kData) Check(*op);
    } else {
      std::ranges::fill(PassesOf(*op), 0);
      if (status_.ok()) status_ = op->status;
    }
    op->file = FileIndex(kIdle);
    free_.push_back(static_cast<size_t>(op - ops_.data()));
  }

  void Check(const IoOp& op) {
    const std::span<const uint32_t> passes = PassesOf(op);
    for (size_t c = 0; c < passes.size(); ++c) {
      if (passes[c] == 0) continue;
      const std::byte* cell = op.memory.data() + c * kCell.size();
      const size_t wrong = FirstWrong(tile(), KeyOf(op, c, passes[c]), cell);
      if (wrong < kCell.size()) {
        if (!status_.ok()) return;
        status_ = absl::DataLossError(
            fmt::format("{}: byte {} is not what was written there", OpName(op),
                        op.offset.value() + static_cast<int64_t>(c * kCell.size() + wrong)));
        return;
      }
      result_.checked += kCell;
    }
  }

  static constexpr uint32_t kIdle = UINT32_MAX;  // the file of an op that is not in flight

  IoLoad* const load_;
  const IoPattern& pattern_;
  IoEngine* const engine_;
  std::vector<IoOp> ops_;
  std::vector<Place> places_;  // of ops_
  std::vector<size_t> free_;
  std::vector<IoOp*> todo_;
  std::vector<IoOp*> done_;
  std::array<Bytes, 2> begun_;  // by IoKind
  IoKind kind_ = IoKind::kRead;
  Bytes run_;  // of kind_, one after another
  TimePoint last_{0};
  absl::Status status_;
  IoLoadResult result_;
};

IoLoad::IoLoad(std::span<const Bytes> file_sizes, MemoryView memory, const Clock* clock,
               const Options& options)
    : clock_(clock), memory_(memory), stretch_(options.stretch), seed_(Mix(options.seed)) {
  SLUICE_CHECK(stretch_ > Bytes(0) && stretch_.value() % kCell.value() == 0);
  size_t cells = 0;
  for (uint32_t f = 0; f < file_sizes.size(); ++f) {
    for (int64_t s = 0; s < file_sizes[f] / stretch_; ++s) {
      order_.push_back(
          {.file = FileIndex(f), .offset = FileOffset(s * stretch_.value()), .first_cell = cells});
      cells += static_cast<size_t>(stretch_ / kCell);
    }
  }
  SLUICE_CHECK_MSG(!order_.empty(), "no file holds a stretch");
  passes_.resize(cells);
  std::mt19937_64 random(seed_);
  for (size_t i = order_.size() - 1; i > 0; --i) std::swap(order_[i], order_[random() % (i + 1)]);
  tile_.resize(kCellWords);
  for (uint64_t& word : tile_) word = random();
  for (size_t at = 0; at + kCell.size() <= memory_.size(); at += kCell.size())
    FillCell(tile_.data(), random(), memory_.data() + at);
}

absl::StatusOr<IoLoadResult> IoLoad::Run(const IoPattern& pattern, IoEngine* engine) {
  const Bytes r = pattern.request;
  if (r <= Bytes(0) || r.value() % kCell.value() != 0 || r > stretch_ ||
      r.size() > memory_.size() || pattern.in_flight == 0) {
    return absl::InvalidArgumentError(
        fmt::format("{} transfers of {} bytes: there must be one at least, and each must be a "
                    "multiple of {} bytes, at most {}",
                    pattern.in_flight, r.value(), kCell.value(),
                    std::min(stretch_.value(), static_cast<int64_t>(memory_.size()))));
  }
  const size_t transfers = std::min<size_t>(pattern.in_flight, memory_.size() / r.size());
  if (pattern.read_share > 0 && pattern.read_share < 1) {  // writes go behind reads
    const size_t n = order_.size();
    const size_t behind = 1 + static_cast<size_t>(r * static_cast<int64_t>(transfers) / stretch_);
    next_[1] = {.stretch = (next_[0].stretch + n - behind % n) % n, .offset = next_[0].offset};
  }
  return Running(this, pattern, engine, transfers).Go();
}

}  // namespace sluice
