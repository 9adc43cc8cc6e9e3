// offload/run/runtime.h
//
// Start reading here. A runtime keeps one model on its tiers and carries out its steps:
//
// - Residency: which units are in HBM. Follows the trace, plans, fetches ahead (Fetcher), serves
//   acquisitions.
// - Gradients: takes gradients into their home, adds them up, sums their squares for the norm.
// - Updater: the update rule over the states, chunk by chunk, under the next forward.
// - Ranks: what is done together with other ranks; there is none where there is one rank.
// - ValueAccess: whole tensors in and out: initial values, state_dict.
// - BlockStore (nvme/): what lives on the drives.
//
// The parts form one state machine on one thread, the control thread. It is driven by completions
// and by calls: what happens elsewhere (workers, device streams, callers) arrives as events in
// the inbox, what happens on drives is handed out by BlockStore::Poll, and one turn of the loop
// (RunOnce) handles all that has come. Nothing in it blocks; only Poll waits. Without a thread of
// its own (Seams::threaded = false) whoever waits for a ticket turns the loop: that is how the
// whole runtime runs in virtual time.
//
// Threads: RunOnce on the control thread; everything else public may be called from any thread and
// takes effect in the order of the calls, but set_tensor_step and ResetCounters do at once. A call
// that throws std::bad_alloc has done nothing.

#ifndef SLUICE_OFFLOAD_RUN_RUNTIME_H_
#define SLUICE_OFFLOAD_RUN_RUNTIME_H_

#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "core/ring_queue.h"
#include "offload/plan/traffic.h"
#include "offload/run/call_record.h"
#include "offload/run/calls.h"
#include "offload/run/checkpoints.h"
#include "offload/run/closing.h"
#include "offload/run/gradient_calls.h"
#include "offload/run/ranks.h"
#include "offload/run/residency.h"
#include "offload/run/runtime_options.h"
#include "offload/run/step_times.h"
#include "offload/run/tickets.h"
#include "offload/run/updater.h"
#include "offload/run/value_access.h"
#include "optim/norm.h"

namespace sluice {

// The public sluice::Runtime (sluice.hpp) is a handle of one of these.
class OffloadRuntime final : public Updater::Observer {
 public:
  // Takes all memory. Errors: ResourceExhausted, Unavailable from the seams.
  static absl::StatusOr<std::unique_ptr<OffloadRuntime>> Create(ModelLayout layout,
                                                                Placement placement,
                                                                const RuntimeOptions& options,
                                                                Seams seams);
  // Carries out what was asked for as long as CloseTimes says, and gives everything back. Waits for
  // what is under way, also if it hangs: where that may be, use Close.
  ~OffloadRuntime() override;
  // The same, in bounded time. Errors: Unavailable naming what hangs; what that may still use is
  // kept until it ends, and the runtime is gone for everybody else.
  static absl::Status Close(std::unique_ptr<OffloadRuntime> runtime);

  const ModelLayout& layout() const { return layout_; }
  // Operations with a ticket; see sluice.h for what each promises. Indices are valid (checked by
  // the caller). A stream's point is taken in the calling thread.
  Ticket Acquire(UnitIndex unit, CallerStream stream = {});
  Ticket PushGrads(std::span<const GivenGradient> given, CallerStream stream = {});
  Ticket PushGrad(TensorIndex tensor, ConstMemoryView data, CallerStream stream = {});
  Ticket Step(StepRequest request);
  StepRequest BlankStep();              // an empty one, with the memory of one before
  Ticket Access(ValueRequest request);  // `request.done` is set here
  Ticket Checkpoint(CheckpointCall call);
  Ticket Drain();
  void BeginIteration(uint32_t key, bool boundary);
  void EndIteration();
  // Errors: FailedPrecondition if the unit is not acquired or the stream is being captured.
  absl::Status Release(UnitIndex unit, CallerStream stream = {});
  void ZeroGrad();
  absl::Status ClearGrad(TensorIndex tensor);

  std::optional<absl::Status> Wait(Ticket ticket, std::chrono::milliseconds timeout);
  absl::StatusOr<DlManagedTensor*> MakeView(UnitIndex unit);
  StepResult last_step() const;
  int64_t tensor_step(TensorIndex tensor) const;
  void set_tensor_step(TensorIndex tensor, int64_t step);
  int64_t tensor_unwritten(TensorIndex tensor) const { return updater_->unwritten(tensor); }
  absl::Status failure() const;

  StepTraffic Traffic() const;  // of one step in which every tensor has a gradient
  // Steps from the next on are measured against their floor by these.
  void SetRates(const HardwareRates& rates);
  std::string ReportJson() const;
  void ResetCounters();
  std::string RecordingJson() const;  // what a replay needs; of calls only with a trace
  absl::Status WriteTrace(const std::string& path) const;
  // A span of the caller's own, on the track "compute".
  void RecordCallerSpan(const std::string& name, TimePoint begin, TimePoint end);

  // One turn of the loop: handles what has come; if nothing has, waits for it until `deadline`.
  void RunOnce(Deadline deadline);
  TimePoint NextTime() const;  // when it must turn again even if nothing comes. Control thread

  // What is on its way or taken, by name; empty when all has come back, which it does in time
  // also after a failure. Control thread.
  std::string Unsettled() const;

 private:
  // How often is looked after what nothing wakes the loop for.
  static constexpr Nanos kTurn = std::chrono::milliseconds(20);

  struct CallsArrived final : Event {
    explicit CallsArrived(OffloadRuntime* r) : runtime(r) {}
    void Handle() override { runtime->OnCalls(); }
    OffloadRuntime* const runtime;
  };
  OffloadRuntime(ModelLayout layout, Placement placement, const RuntimeOptions& options,
                 Seams seams);
  absl::Status Init();
  Ticket SendTurn(std::unique_ptr<Turn> turn);
  void ClearGrads(std::optional<TensorIndex> tensor);
  void OnCalls();
  void TakeCalls();
  bool HeedsCalls();
  void RunQueue();
  void Run(EndCall& call);
  void Run(BeginCall& call);
  void Run(EnteredCall& call);
  void Run(AcquireCall& call);
  void Run(ReleaseCall& call);
  void Run(std::unique_ptr<GradsCall>& call);
  void Run(std::unique_ptr<Turn>& turn);
  void Run(DrainCall& call);
  void NoteWait();
  std::optional<WaitedFor> WaitsFor();
  WaitedFor StepWaitsFor(const Turn& turn) const;
  WaitedFor AcquisitionWaitsFor(UnitIndex unit) const;
  WaitedFor UpdateWaitsFor() const;
  void Advance();  // begins whatever turn can begin
  bool AdvanceStep(Turn& turn);
  bool MeetRanks(Turn& turn);
  bool MeetForAccess(Turn& turn);
  uint64_t StepHash(const StepRequest& request) const;
  bool ExchangeSums(Turn& turn);
  bool Present(TensorIndex tensor) const;
  void RenewOnRanks(UnitIndex unit);
  bool EndsWindow();
  void ForgetGradients();
  void ReplaceGradient(TensorIndex tensor);
  void Refuse(const absl::Status& status);
  bool GathersValue(const ValueRequest& request) const;
  bool IsWholeHere(const ValueRequest& request) const;
  bool AwaitsWrite(const ValueRequest& request) const;
  void GatherValue(const ValueRequest& request, RankGathers::Done done);
  bool AdvanceValue(Turn& turn);
  void EndValue(Turn* turn, const ValueRequest& request, const absl::Status& status);
  bool AdvanceClearGrads(Turn& turn);
  bool AdvanceCheckpoint(Turn& turn);
  void Load(LoadRequest request, CheckpointJob::Done done);
  absl::Status CheckLoaded(TensorIndex tensor) const;
  void NoteLoaded(TensorIndex tensor);
  absl::Status CheckValueRequest(const ValueRequest& request) const;
  absl::Status CheckStep(const StepRequest& request) const;
  absl::Status CheckReleased() const;
  void DecideStep(Turn& turn);
  void StartUpdate(Turn& turn, float grad_scale);
  void EndTurn(const absl::Status& status);
  void ReadAheadIfUseful();
  void CheckDrained();
  void CheckEndedWriting();
  bool Quiet() const;
  void Fail(const absl::Status& status);
  void ControlLoop();
  void Stop();
  void DrainUntil(TimePoint deadline);
  void SettleUntil(TimePoint deadline);
  void TakeDown();
  void KeepLostMemory();
  bool TasksPending() const;
  bool CopiesPending() const;
  bool TransfersPending() const;
  std::string Pending() const;  // in words
  void OnUnitUpdated(UnitIndex unit) override;
  void OnUpdaterIdle() override;

  const RuntimeOptions options_;
  const ModelLayout layout_;
  const Placement placement_;
  const ParamPieces pieces_;
  const StateUpdate update_;
  Metrics metrics_;
  StepTimes step_times_;
  TraceEvents trace_;
  TrackId caller_track_ = 0;
  CallRecord record_;
  Inbox inbox_;
  CallsArrived calls_arrived_{this};
  Calls calls_{&inbox_, &calls_arrived_};  // whether they are heeded, views ask till they end
  Seams seams_;
  TierMemory memory_;
  std::string pinning_;  // what became of registering pinned memory with the device
  std::shared_ptr<Arena> hbm_;
  std::unique_ptr<IoEngine> engine_;
  std::unique_ptr<BlockStore> store_;
  std::unique_ptr<Residency> residency_;
  std::unique_ptr<Gradients> gradients_;
  std::unique_ptr<Ranks> ranks_;  // if there are several
  std::unique_ptr<Updater> updater_;
  std::unique_ptr<ValueAccess> values_;
  std::unique_ptr<Checkpoints> checkpoints_;
  Tickets tickets_;
  std::unique_ptr<GradientCalls> gradient_calls_;

  // The control thread's.
  RingQueue<Call> queue_;  // that have come, in order
  RingQueue<std::unique_ptr<Turn>> turns_;
  size_t values_begun_ = 0;                                    // at the front of turns_
  std::vector<std::optional<Updater::TensorUpdate>> updates_;  // while a step is begun
  std::vector<bool> changes_;                                  // by unit, likewise
  std::vector<Ticket> drains_;
  std::vector<bool> loaded_;      // by tensor: what is kept of it was written
  std::vector<size_t> unloaded_;  // by unit: tensors of which it was not
  LossScaler scaler_;
  bool backward_begun_ = false;  // of a boundary iteration
  bool begun_ = false;           // Init has succeeded
  Ticket step_ticket_ = 0;       // without overlap: completed when the update has ended

  mutable std::mutex mutex_;
  bool stopping_ = false;              // guarded by mutex_
  StepResult last_step_;               // guarded by mutex_
  std::vector<int64_t> tensor_steps_;  // guarded by mutex_
  std::set<std::string> span_names_;   // guarded by mutex_; entries stay
  std::string loaded_from_;            // guarded by mutex_; a checkpoint, and what is to be said
  absl::Status failure_;               // guarded by mutex_
  Spares<Turn> spare_turns_;
  Spares<GradsCall> spare_grads_;
  const std::shared_ptr<Closing> closing_ = std::make_shared<Closing>();
  std::thread thread_;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_RUNTIME_H_
