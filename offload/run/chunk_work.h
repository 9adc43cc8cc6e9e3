// offload/run/chunk_work.h
//
// One chunk on its way through an update: its buffers, its transfers, and the arithmetic that
// workers do on it, or the device where the states live in HBM. A chunk is what is transferred;
// what workers do is cut into parts that stay in a core's cache, and several workers may have one
// each. They do it in up to three rounds, each of which begins when the one before has ended: what
// was read is checked, unless the update does that on the way; the update; what will be written is
// sealed, unless the update has done so. Nothing computed from a chunk leaves its buffers before
// all of it was found to be right. Internal to the updater, which says what happens when.
//
// Threads: the parts run on workers, Launch on the device's thread, the rest on the control thread.
// Lives as long as the updater; used for one chunk after another.

#ifndef SLUICE_OFFLOAD_RUN_CHUNK_WORK_H_
#define SLUICE_OFFLOAD_RUN_CHUNK_WORK_H_

#include <array>
#include <optional>
#include <vector>

#include "offload/run/step_transfer.h"
#include "offload/run/updater.h"

namespace sluice {

class Updater::ChunkWork final : public DeviceWork, public Event {
 public:
  explicit ChunkWork(Updater* owner);

  // Starts the update: by workers, or the device. What is to be written is prepared.
  void Submit();
  // All of the chunk, on the device's stream or, where that is null, here.
  void Launch(void* stream) override;
  void Handle() override;

  enum class Round : uint8_t { kCheck, kUpdate, kSeal };
  static constexpr const char* kRoundNames[] = {"check", "update", "seal"};
  // The elements from `first` to `last` of the chunk: whole pieces of its states' block, or to the
  // end. And its share of the pieces of blocks that are checked or sealed whole.
  struct Part final : Task {
    void Run() override { work->RunPart(this); }
    TaskCost cost() const override {
      return {work->streaming ? TaskKind::kStream : TaskKind::kUpdate, last - first};
    }
    ChunkWork* work = nullptr;
    int64_t first = 0;
    int64_t last = 0;
    absl::Status status;
    struct Span {
      TimePoint begin{0};
      TimePoint end{0};
    };
    std::array<Span, std::size(kRoundNames)> spans;  // by round; one that was left out: empty
  };
  std::span<const Part> parts() const { return std::span(parts_).first(part_count_); }

  using Transfer = StepTransfer<Updater, ChunkWork>;

  // Takes the buffer that its gradients come into, if they live on NVMe.
  struct GradsCome final : BufferPool::Waiter {
    explicit GradsCome(ChunkWork* work) : work(work) {}
    void OnBuffer(MemoryView buffer) override {
      work->grad_buffer = buffer;
      work->owner_->OnGradBuffer(work);
    }
    ChunkWork* const work;
  };

  ChunkIndex chunk;
  bool streaming = false;  // states come from and go to NVMe
  DriveIndex drive;        // if streaming: whose share of the buffers this one is of
  bool on_device = false;  // states live in HBM
  bool param_on_nvme = false;
  bool params_read = false;  // the copies are read from NVMe, as part of the masters
  std::byte* states = nullptr;
  MemoryView state_buffer;      // if streaming
  MemoryView grad_buffer;       // if the gradients live on NVMe
  ParamPiece* piece = nullptr;  // whose buffer the copies pass through; null: through none
  MemoryView param_part;        // of that buffer
  std::byte* params = nullptr;  // where the copies are written; null: they are lent
  int stores_left = 0;          // of its own writes
  absl::Status status;
  Transfer read;
  Transfer write;
  Transfer param_write;
  Transfer param_read;
  Transfer grad_read;
  GradsCome grads_come;

 private:
  // Where the update adds what it finds and leaves of a piece; none: nowhere.
  struct Sums {
    StripeSums* before = nullptr;
    StripeSums* after = nullptr;
    size_t column_stripes = 0;
  };
  void Begin(Round round);
  void RunPart(Part* part);
  absl::Status RunRound(const Part& part);
  absl::Status EndRound();
  bool Has(Round round) const;
  std::optional<Round> NextRound() const;
  bool Verifies() const;
  bool SumsOnTheWay() const;
  bool ChecksOnTheWay() const;
  bool HidesParams() const;
  absl::Status Check(const Part& part) const;
  PieceRange ShareOf(const Part& part, const BlockTransfer& of) const;
  absl::Status UpdateInPieces(int64_t first, int64_t last);
  void AddUnsummed(StripeSums* sums, int64_t first, int64_t last) const;
  void SealOrPublish(const Part& part);
  void PublishParams(int64_t first, int64_t last) const;
  // Of the elements from `first` on, up to `last`.
  void Update(void* stream, int64_t first, int64_t last, const Sums& sums);

  Updater* const owner_;
  std::vector<Part> parts_;  // room for those of any chunk
  size_t part_count_ = 0;
  Round round_ = Round::kCheck;        // set while no part runs
  std::atomic<size_t> parts_left_{0};  // of the round
  DeviceOp device_op_;                 // the update, if on_device
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_CHUNK_WORK_H_
