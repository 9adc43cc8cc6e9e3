// offload/run/value_step.h
//
// One chunk under way for a value request: [read] -> work on a worker -> [write states] and [store
// parameters] -> idle. Internal to ValueAccess, which says which chunk comes when.
//
// Threads: Run on a worker, the rest on the control thread. Lives as long as the ValueAccess; used
// for one chunk after another. Nothing ends within Start: what it begins comes back as an event or
// from BlockStore::Poll.

#ifndef SLUICE_OFFLOAD_RUN_VALUE_STEP_H_
#define SLUICE_OFFLOAD_RUN_VALUE_STEP_H_

#include <optional>

#include "offload/run/value_access.h"

namespace sluice {

class ValueAccess::ChunkStep final : public Task, public Event {
 public:
  explicit ChunkStep(ValueAccess* owner)
      : read_(this, &ChunkStep::OnRead),
        param_read_(this, &ChunkStep::OnRead),
        grad_read_(this, &ChunkStep::OnRead),
        write_(this, &ChunkStep::OnStored),
        param_write_(this, &ChunkStep::OnStored),
        grad_write_(this, &ChunkStep::OnStored),
        download_(this, &ChunkStep::OnRead),
        param_download_(this, &ChunkStep::OnRead),
        upload_(this, &ChunkStep::OnStored),
        param_upload_(this, &ChunkStep::OnStored),
        owner_(owner),
        context_(owner->context_) {}

  // Takes the chunk and the buffers that it passes through: all of them, or none and returns false.
  bool Take(Request* request, ChunkIndex chunk);
  // Ends with ValueAccess::EndChunk; the buffers were given back then.
  void Start();

  Request* request() const { return request_; }
  ChunkIndex chunk() const { return chunk_; }

  void Run() override;
  void Handle() override;  // the worker is done

 private:
  using Next = void (ChunkStep::*)(const absl::Status&);
  struct Transfer final : BlockTransfer {
    Transfer(ChunkStep* step, Next next) : step(step), next(next) {}
    void OnDone() override { (step->*next)(status()); }
    ChunkStep* const step;
    const Next next;
  };
  // A copy between a buffer and HBM.
  struct Copy final : Event {
    Copy(ChunkStep* step, Next next) : step(step), next(next) {}
    void Start(ConstMemoryView from, std::byte* to);
    void Handle() override { (step->*next)(op.status); }
    ChunkStep* const step;
    const Next next;
    DeviceOp op;
  };

  const ValueRequest& asked() const { return request_->asked; }
  const ChunkLayout& layout() const { return context_.layout->chunk(chunk_); }
  Tier home() const { return context_.placement->state_home[chunk_.value()]; }
  bool to_drive() const { return !buffer_.empty() && home() == Tier::kNvme; }
  size_t state_size() const { return layout().state_bytes().size(); }
  const std::optional<BlockIndex>& state_block() const {
    return context_.memory->blocks.states[chunk_.value()];
  }
  Tier grad_tier() const { return context_.placement->grad_home[chunk_.value()]; }
  BlockIndex grad_block() const { return *context_.memory->blocks.grads[chunk_.value()]; }
  Tier param_tier() const { return context_.placement->param_home[layout().unit.value()]; }
  int64_t param_size() const { return layout().types.param.size(); }
  const std::optional<BlockIndex>& param_block() const {
    return context_.memory->blocks.params[chunk_.value()];
  }
  // The chunk's parameters, unless they live on NVMe.
  std::byte* ParamHome() const { return context_.memory->ParamsOf(layout()); }
  std::byte* Params() const { return param_buffer_.empty() ? ParamHome() : param_buffer_.data(); }
  bool reads_params() const { return context_.layout->reads_params(layout()); }
  std::byte* FrozenParams() const {
    return param_tier() == Tier::kPinned ? ParamHome() : param_buffer_.data();
  }
  ChunkStates States() const {
    return StatesAt(layout(), states_, reads_params() ? Params() : nullptr);
  }
  const ChunkRun& ThisRun() const;  // the part of the chunk that the request is about
  bool StatesPass() const;          // through a buffer on their way; or gradients in HBM do
  bool ParamsPass() const;
  bool GradsPass() const;  // those on NVMe

  void StartGrad();
  void ApplyGrad(const ChunkRun& run);
  void StoreGrad();
  void StartFrozen();
  void LoadStates();
  void LoadParams();
  void Prepare();
  void OnRead(const absl::Status& status);
  void Apply(const ChunkRun& run);
  void ApplyFrozen(const ChunkRun& run);
  void ApplyImage();
  void ReadRounded(const ChunkRun& run, std::byte* out) const;
  void RenewParams();
  void OnStored(const absl::Status& status);
  void GiveBack();
  void End();

  Transfer read_;
  Transfer param_read_;
  Transfer grad_read_;
  Transfer write_;
  Transfer param_write_;
  Transfer grad_write_;
  Copy download_;
  Copy param_download_;
  Copy upload_;
  Copy param_upload_;
  ValueAccess* const owner_;
  const Context& context_;
  Request* request_ = nullptr;
  ChunkIndex chunk_;
  std::byte* states_ = nullptr;
  std::byte* grads_ = nullptr;  // of the chunk, if they are asked for
  MemoryView buffer_;
  MemoryView param_buffer_;
  MemoryView grad_buffer_;
  bool fresh_ = false;  // the chunk holds nothing yet: what passes through buffers begins as zeros
  bool was_read_ = false;
  bool params_were_read_ = false;
  bool grads_were_read_ = false;
  int loads_left_ = 0;
  int stores_left_ = 0;
  absl::Status status_;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_VALUE_STEP_H_
