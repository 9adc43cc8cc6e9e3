// offload/run/chunk_work.h
//
// One chunk on its way through an update: its buffers, its transfers, and the arithmetic that a
// worker does on it, or the device where the states live in HBM. Internal to the updater, which
// says what happens when.
//
// Threads: Run on a worker, Launch there or on the device's, the rest on the control thread. Lives
// as long as the updater; used for one chunk after another.

#ifndef SLUICE_OFFLOAD_RUN_CHUNK_WORK_H_
#define SLUICE_OFFLOAD_RUN_CHUNK_WORK_H_

#include "offload/run/updater.h"

namespace sluice {

class Updater::ChunkWork final : public Task,
                                 public DeviceWork,
                                 public Event,
                                 public BufferPool::Waiter {
 public:
  explicit ChunkWork(Updater* owner)
      : read(this, &Updater::OnRead),
        write(this, &Updater::OnStatesStored),
        param_write(this, &Updater::OnParamsStored),
        param_read(this, &Updater::OnParamsRead),
        download(this, &Updater::OnParamsRead),
        upload(this, &Updater::OnParamsStored),
        owner_(owner) {}

  // On a worker: checks what was read, updates, seals what will be written.
  void Run() override;
  // Updates, on the device's stream or, where it is null, here.
  void Launch(void* stream) override;
  Nanos cost() const override {
    return Nanos(owner_->context_.layout->chunk(chunk).elements / 2 + 500);
  }

  void Handle() override;
  void OnBuffer(MemoryView buffer) override {
    param_buffer = buffer;
    owner_->OnParamBuffer(this);
  }

  // A block transfer that ends in a step of the updater.
  struct Transfer final : BlockTransfer {
    using Next = void (Updater::*)(ChunkWork*, const absl::Status&);
    Transfer(ChunkWork* work, Next next) : work(work), next(next) {}
    void OnDone() override { (work->owner_->*next)(work, status()); }
    ChunkWork* const work;
    const Next next;
  };
  // A copy between the parameters' buffer and HBM, likewise.
  struct Copy final : Event {
    Copy(ChunkWork* work, Transfer::Next next) : work(work), next(next) {}
    void Start(const Context& context, StreamKind stream, ConstMemoryView from, std::byte* to) {
      op.stream = stream;
      op.from = from;
      op.to = to;
      op.inbox = context.inbox;
      op.event = this;
      context.device->Enqueue(&op);
    }
    void Handle() override { (work->owner_->*next)(work, op.status); }
    ChunkWork* const work;
    const Transfer::Next next;
    DeviceOp op;
  };

  ChunkIndex chunk;
  bool streaming = false;  // states come from and go to NVMe
  DriveIndex drive;        // if streaming: whose share of the buffers this one is of
  bool on_device = false;  // states live in HBM
  bool param_on_nvme = false;
  bool params_read = false;  // the copies are read from NVMe, as part of the masters
  std::byte* states = nullptr;
  MemoryView state_buffer;  // if streaming
  MemoryView param_buffer;  // if the copy passes through a buffer
  int stores_left = 0;
  absl::Status status;
  TimePoint begin{0};
  TimePoint end{0};
  Transfer read;
  Transfer write;
  Transfer param_write;
  Transfer param_read;
  Copy download;
  Copy upload;
  DeviceOp device_op;  // the update, if on_device

 private:
  Updater* const owner_;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_CHUNK_WORK_H_
