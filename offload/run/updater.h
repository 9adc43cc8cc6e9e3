// offload/run/updater.h
//
// The updater turns gradients into new parameters: chunk by chunk, in forward order, it reads a
// chunk's states (if they live on NVMe), updates it on a worker (or on the device, if they live in
// HBM), brings the new parameters to their unit's home, and writes the states back. Reads,
// arithmetic and writes of neighbouring chunks overlap; how many chunks are on their way at a time
// is bounded by the buffers. Between steps it may read ahead as far as the buffers go; arithmetic
// starts at Start.
//
// A chunk on its way (ChunkWork): reading -> staged -> computing -> storing -> idle. Gradients that
// live on NVMe, and param copies that part of the masters is in (optim/state_format.h), are read
// before computing. Where the host can write parameters at home (pinned memory, or HBM that is the
// host's), it does; elsewhere those of neighbouring chunks pass through a buffer together
// (ParamPiece). The unit's parameters are up to date when those of its last chunk are stored; the
// states may still be on their way to the drive.
//
// A lent parameter is read before it is updated: the caller may have changed it, and then the
// master follows. The new one is written in its place. One that is the master is updated there.
//
// Threads: the control thread; tasks run on workers and on the device's streams. Allocates at
// construction only.

#ifndef SLUICE_OFFLOAD_RUN_UPDATER_H_
#define SLUICE_OFFLOAD_RUN_UPDATER_H_

#include <atomic>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/ring_queue.h"
#include "offload/run/context.h"
#include "offload/run/read_order.h"

namespace sluice {

class Updater : private BufferPool::Keeper {
 public:
  class Observer {
   public:
    virtual ~Observer() = default;
    virtual void OnUnitUpdated(UnitIndex unit) = 0;  // its parameters are final
    virtual void OnUpdaterIdle() = 0;                // nothing is on its way any more
  };

  Updater(const Context& context, Observer* observer);
  ~Updater() override;

  // The order of the units in forward; units not named come last. Taken over when nothing goes
  // through the present one: now, or when the next step has ended.
  void SetOrder(std::span<const UnitIndex> order);

  // From now on states may be read ahead of Start.
  void AllowReadAhead();
  // No reading ahead until AllowReadAhead; what was read is dropped. OnUpdaterIdle follows if
  // something was on its way.
  void StopReadAhead();

  // The runtime has failed: begins nothing more, and gives back what was read ahead.
  void Fail();

  struct TensorUpdate {
    StepScalars scalars;
    ParamPlace lent;  // where a lent tensor's parameter lies until its unit is updated
    const std::byte* lent_grad = nullptr;  // likewise its gradient, if it is not at home
  };
  // Starts one step: by tensor, none for a tensor that is left alone. Precondition: !updating().
  // Calls no observer before it returns. `updates` is what the one before was, afterwards.
  void Start(std::vector<std::optional<TensorUpdate>>* updates);

  bool updating() const { return stores_left_ > 0; }
  bool idle() const { return !busy() && stores_left_ == 0; }
  bool busy() const { return busy_ > 0 || open_pieces_ > 0; }  // on their way, or wait for Start
  bool computing() const { return computing_ > 0; }            // a worker, or the device
  // Parameters may still be written: at home, or where they are lent.
  bool writing() const { return computing_ > 0 || closing_ > 0 || params_writing_ > 0; }
  // Elements whose parameter the tensor's last update has yet to store; after Fail and once nothing
  // computes: that it never will. Any thread.
  int64_t unwritten(TensorIndex tensor) const { return unwritten_[tensor.value()].load(); }
  bool UnitPending(UnitIndex unit) const { return unit_left_[unit.value()] > 0; }

 private:
  class ChunkWork;
  class ParamPiece;
  friend class ChunkWork;
  friend class ParamPiece;

  void Pump();
  void PumpReads();
  BlockIndex BlockToRead(ChunkIndex chunk) const;  // that holds the states of `chunk`
  void PumpResident();
  bool MayBegin() const;
  ChunkWork* Take(RingQueue<ChunkWork*>* idle);
  void FailChunk(ChunkIndex chunk, const absl::Status& status);
  void OnRead(ChunkWork* work, const absl::Status& status);
  void LoadGrads(ChunkWork* work);
  void OnGradBuffer(ChunkWork* work);
  void OnGradsRead(ChunkWork* work, const absl::Status& status);
  void BeginCompute(ChunkWork* work);
  void EnterPiece(ChunkWork* work, uint32_t number);
  void OnParamPlace(ChunkWork* work);
  void OnParamsRead(ChunkWork* work, const absl::Status& status);
  void OnNoParams(ChunkWork* work, const absl::Status& status);
  void Submit(ChunkWork* work);
  void OnComputed(ChunkWork* work);
  void OnParamsWritten(ChunkWork* work, const absl::Status& status);
  void OnParamsStored(ChunkIndex chunk, const absl::Status& status);
  void OnStatesStored(ChunkWork* work, const absl::Status& status);
  void CountWritten(ChunkIndex chunk);
  void EndStore();
  void EndOwnStore(ChunkWork* work);
  void Retire(ChunkWork* work);
  void GoOn();
  void OnWanted() override;
  void Settle(ParamPiece* piece);
  void ClosePiece(ParamPiece* piece, uint32_t number);
  bool Active(ChunkIndex chunk) const;
  void Order();

  const Context context_;
  Observer* const observer_;
  std::vector<std::unique_ptr<ChunkWork>> works_;
  RingQueue<ChunkWork*> idle_streaming_;  // for chunks on NVMe
  RingQueue<ChunkWork*> idle_resident_;
  RingQueue<ChunkWork*> staged_;  // read ahead of Start
  std::vector<UnitIndex> unit_order_;
  std::vector<UnitIndex> next_order_;  // to be taken over when this step has ended; empty: none
  std::vector<bool> named_;            // while an order is set
  ReadOrder streaming_;                // chunks on NVMe
  std::vector<ChunkIndex> resident_;
  size_t next_resident_ = 0;
  bool read_ahead_ = false;
  bool started_ = false;
  bool failed_ = false;
  size_t busy_ = 0;                  // works that are not idle
  size_t computing_ = 0;             // of these: with a worker, or with the device
  size_t params_writing_ = 0;        // of these: their parameters are on the way to a drive
  size_t stores_left_ = 0;           // of this step: of chunks' states, and of their parameters
  std::vector<uint32_t> unit_left_;  // by unit: chunks whose parameters are not stored yet
  std::vector<std::atomic<int64_t>> unwritten_;  // by tensor: elements
  std::vector<bool> on_its_way_;                 // by chunk: some work that streams has it
  std::vector<bool> begun_;                      // by chunk: its arithmetic of this step was begun
  std::vector<std::optional<TensorUpdate>> updates_;
  std::vector<uint32_t> coming_;       // by piece: chunks of this step that have yet to enter it
  std::vector<ParamPiece*> piece_at_;  // by piece, if it is open
  std::vector<std::unique_ptr<ParamPiece>> piece_pool_;
  std::vector<ParamPiece*> free_pieces_;
  size_t open_pieces_ = 0;
  size_t closing_ = 0;  // of these: those that will give back their buffers
  Counter* const chunks_updated_;
  Counter* const elements_updated_;
  Counter* const update_ns_;
  Histogram* const chunk_ns_;
  Counter* const grad_read_bytes_;
  TrackId track_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_UPDATER_H_
