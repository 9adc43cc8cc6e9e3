// tests/nvme/model_drive.h
//
// A drive by formula, in virtual time: it serves one transfer after another, each for a time that
// its size, the batch and what is in flight decide, and answers a while later. So the rate of any
// load that keeps the same number in flight is arithmetic, and the best of all can be known.
//
// Threads: one.

#ifndef SLUICE_TESTS_NVME_MODEL_DRIVE_H_
#define SLUICE_TESTS_NVME_MODEL_DRIVE_H_

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/status.h"
#include "nvme/io_engine.h"
#include "nvme/tuner.h"

namespace sluice {

struct DriveModel {
  const char* name = "";
  double bytes_per_second = 3e9;
  double answer = 100e-6;    // seconds from the end of the service to completion
  double transfer = 0;       // seconds of service for each transfer
  double call = 0;           // for each call, shared by its batch
  double merged_above = 64;  // MiB submitted at once that the kernel makes larger requests of,
  double merge_cost = 0;     // which are slower by so much, each time they double
  double deep_above = 1024;  // MiB in flight, likewise
  double deep_cost = 0;
  double engines[3] = {1, 0.8, 0.6};  // io_uring, libaio, threads: parts of the rate

  double Service(const TunePoint& p) const {
    const double mib = static_cast<double>(p.request.value()) / (1 << 20);
    double slower = 1 + merge_cost * std::max(0.0, std::log2(p.batch * mib / merged_above));
    slower += deep_cost * std::max(0.0, std::log2(p.depth() * mib / deep_above));
    return (mib * (1 << 20) / bytes_per_second * slower + transfer + call / p.batch) /
           engines[static_cast<size_t>(p.engine) - 1];
  }
  double Rate(const TunePoint& p) const {  // bytes per second
    const auto bytes = static_cast<double>(p.request.value());
    return std::min(bytes / Service(p), p.depth() * bytes / (answer + Service(p)));
  }
  TunePoint Best(const TuneGrid& grid) const {
    const std::vector<TunePoint> points = grid.Points();
    return *std::ranges::max_element(points, {}, [this](const TunePoint& p) { return Rate(p); });
  }
};

// The files of such a drive, and its time.
class ModelDrive : public Clock {
 public:
  ModelDrive(const DriveModel& model, std::span<const Bytes> file_sizes) : model_(model) {
    for (const Bytes size : file_sizes) files_.emplace_back(size.size());
  }

  TimePoint Now() const override { return now_; }
  std::unique_ptr<IoEngine> MakeEngine(IoEngineKind kind, const IoEngine::Limits& limits) {
    ++engines_made;
    return std::make_unique<Engine>(this, kind, limits);
  }

  bool copies = true;  // without it, reads give anything: where nobody looks
  int64_t transfers = 0;
  int64_t fails_at = -1;     // the transfer of that number,
  int64_t corrupts_at = -1;  // and the read of that one
  int64_t written = 0;       // bytes
  int64_t engines_made = 0;

 private:
  class Engine : public IoEngine {
   public:
    Engine(ModelDrive* drive, IoEngineKind kind, const Limits& limits)
        : drive_(drive), kind_(kind), limits_(limits) {}

    size_t Submit(std::span<IoOp* const> ops) override {
      size_t taken = 0;
      for (IoOp* op : ops) {
        if (under_way_.size() == limits_.in_flight_max) break;
        const Bytes size(static_cast<int64_t>(op->memory.size()));
        const TunePoint point{.engine = kind_,
                              .request = size,
                              .in_flight = size * limits_.in_flight_max,
                              .batch = limits_.submit_batch_max};
        const auto service = Nanos(std::llround(drive_->model_.Service(point) * 1e9));
        op->submitted = drive_->now_;
        drive_->served_ = std::max(drive_->served_, drive_->now_) + service;
        op->completed = drive_->served_ + Nanos(std::llround(drive_->model_.answer * 1e9));
        under_way_.push_back(op);
        ++taken;
      }
      return taken;
    }
    size_t Poll(std::span<IoOp*> done, Deadline deadline) override {
      if (under_way_.empty()) return 0;
      if (under_way_.front()->completed > deadline) return 0;
      drive_->now_ = std::max(drive_->now_, under_way_.front()->completed);
      size_t n = 0;
      for (; n < done.size() && !under_way_.empty(); ++n) {
        if (under_way_.front()->completed > drive_->now_) break;
        done[n] = under_way_.front();
        under_way_.pop_front();
        drive_->Move(done[n]);
      }
      return n;
    }
    void Wake() override {}
    size_t in_flight() const override { return under_way_.size(); }
    std::string description() const override { return "a model"; }
    absl::Status Close() override { return absl::OkStatus(); }

   private:
    ModelDrive* const drive_;
    const IoEngineKind kind_;
    const Limits limits_;
    std::deque<IoOp*> under_way_;  // in order of completion
  };

  void Move(IoOp* op) {
    op->status = absl::OkStatus();
    op->transferred = Bytes(static_cast<int64_t>(op->memory.size()));
    if (transfers++ == fails_at) op->status = absl::DataLossError("transfer: EIO");
    if (op->kind == IoKind::kWrite) written += op->transferred.value();
    if (!copies) return;
    std::byte* const file = files_[op->file.value()].data() + op->offset.value();
    if (op->kind == IoKind::kWrite) {
      std::memcpy(file, op->memory.data(), op->memory.size());
    } else {
      std::memcpy(op->memory.data(), file, op->memory.size());
      if (transfers - 1 >= corrupts_at && corrupts_at >= 0) op->memory[77] ^= std::byte{4};
    }
  }

  const DriveModel model_;
  std::vector<std::vector<std::byte>> files_;
  TimePoint now_{0};
  TimePoint served_{0};  // until when the drive is busy
};

}  // namespace sluice

#endif  // SLUICE_TESTS_NVME_MODEL_DRIVE_H_
