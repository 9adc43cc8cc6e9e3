// offload/run/param_piece.h
//
// The parameters of neighbouring chunks of a unit (offload/plan/param_pieces.h) while they share a
// buffer on their way through an update: to a home in HBM in one copy when the last of them is
// computed, or each to its block on NVMe as soon as it is. Where the update reads the present ones,
// they come the same way first. Internal to the updater.
//
// Chunks come in any order, since drives have lanes of their own, and those that are still to come
// may wait for what others hold. So a piece keeps its buffer only while something of it is under
// way, which ends by itself, or while nobody wants the buffer: when one is wanted, what is computed
// is stored in parts, the buffer is given back, and the chunks that come later take another. Hence
// no order of chunks and no number of buffers can deadlock: of the holders of buffers that somebody
// waits for, none waits for a chunk to come.
//
// Once the runtime has failed, what is computed is not stored and nobody is let in any more.
//
// Threads: the control thread.

#ifndef SLUICE_OFFLOAD_RUN_PARAM_PIECE_H_
#define SLUICE_OFFLOAD_RUN_PARAM_PIECE_H_

#include <vector>

#include "offload/run/updater.h"

namespace sluice {

class Updater::ParamPiece final : public Event, public BufferPool::Waiter {
 public:
  explicit ParamPiece(Updater* owner);

  // Is the piece of that number from now on, until it is closed.
  void Open(uint32_t number);
  // Updater::OnParamPlace follows when the chunk's part of a buffer is there, or OnNoParams.
  void Enter(ChunkWork* work);
  // It has gone on, and will not touch the buffer any more. `computed`: its part holds its new
  // parameters, and they are to be copied to HBM.
  void Leave(ChunkIndex chunk, bool computed);
  uint32_t number() const { return number_; }
  // Nothing of it is under way.
  bool KeepsBuffer() const { return !buffer_.empty() && under_way_ == 0 && !storing_; }
  // Stores what is computed, then gives the buffer back. Precondition: KeepsBuffer().
  void GiveBack();

  void OnBuffer(MemoryView buffer) override;
  void Handle() override;  // of a copy

 private:
  void TurnAway(const absl::Status& status);
  void AdmitAll();
  void Admit(ChunkWork* work);
  void Copy(StreamKind stream, uint32_t first, uint32_t last);
  void StoreNext();
  void Close();

  Updater* const owner_;
  uint32_t number_ = 0;
  uint32_t first_ = 0;  // chunk
  uint32_t count_ = 0;
  bool in_hbm_ = false;
  MemoryView buffer_;
  std::vector<ChunkWork*> waiting_;  // for the buffer, or until it is filled
  uint32_t under_way_ = 0;      // chunks that are read, computed or written; and a copy to here
  bool storing_ = false;        // copies out of the buffer, after which it is given back
  std::vector<bool> computed_;  // by chunk from first_, and to be copied
  uint32_t copied_first_ = 0;   // what a copy is of, likewise
  uint32_t copied_last_ = 0;
  DeviceOp copy_;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_PARAM_PIECE_H_
