// offload/run/chunk_work.h
//
// One chunk on its way through an update: its buffers, its transfers, and the arithmetic that
// workers do on it, or the device where the states live in HBM. A chunk is what is transferred; the
// arithmetic is cut into parts that stay in a core's cache, and several workers may have one each.
// Internal to the updater, which says what happens when.
//
// Threads: the parts run on workers, Launch on the device's thread, the rest on the control thread.
// Lives as long as the updater; used for one chunk after another.

#ifndef SLUICE_OFFLOAD_RUN_CHUNK_WORK_H_
#define SLUICE_OFFLOAD_RUN_CHUNK_WORK_H_

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

  // The elements from `first` to `last` of the chunk: whole pieces of its block's, or to the end.
  // Each checks and seals its own where the update's kernel adds sums; otherwise the first checks
  // what was read before the others are submitted, and the last to end seals what will be written.
  struct Part final : Task {
    void Run() override { work->RunPart(this); }
    Nanos cost() const override { return Nanos((last - first) / 2 + 500); }
    ChunkWork* work = nullptr;
    int64_t first = 0;
    int64_t last = 0;
    absl::Status status;
    TimePoint begin{0};
    TimePoint end{0};
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
  void RunPart(Part* part);
  bool Verifies();
  bool ChecksOnTheWay() const;
  absl::Status UpdateInPieces(int64_t first, int64_t last);
  absl::Status EndParts();
  void AddUnsummed(StripeSums* sums, int64_t first, int64_t last) const;
  void PublishParams() const;
  // Of the elements from `first` on, up to `last`.
  void Update(void* stream, int64_t first, int64_t last, const Sums& sums);

  Updater* const owner_;
  std::vector<Part> parts_;  // room for those of any chunk
  size_t part_count_ = 0;
  std::atomic<size_t> parts_left_{0};
  DeviceOp device_op_;  // the update, if on_device
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_CHUNK_WORK_H_
