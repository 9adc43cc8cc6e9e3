// Making a runtime, and the loop of its control thread.

#include "offload/run/runtime.h"

#include <pthread.h>

#include <algorithm>
#include <system_error>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

OffloadRuntime::OffloadRuntime(ModelLayout layout, Placement placement,
                               const RuntimeOptions& options, Seams seams)
    : options_(options),
      layout_(std::move(layout)),
      placement_(std::move(placement)),
      pieces_(layout_, placement_),
      update_(layout_.format(), options.rule),
      trace_(options.trace_spans_max),
      record_(trace_.enabled() ? seams.clock : nullptr),
      seams_(std::move(seams)),
      tickets_(seams_.cores.callers_help ? seams_.executor.get() : nullptr),
      loaded_(layout_.tensors().size(), false),
      scaler_(options.loss_scale),
      tensor_steps_(layout_.tensors().size(), 0) {
  last_step_.loss_scale = scaler_.scale();
}

absl::StatusOr<std::unique_ptr<OffloadRuntime>> OffloadRuntime::Create(
    ModelLayout layout, Placement placement, const RuntimeOptions& options, Seams seams) {
  std::unique_ptr<OffloadRuntime> runtime(
      new OffloadRuntime(std::move(layout), std::move(placement), options, std::move(seams)));
  SLUICE_RETURN_IF_ERROR(runtime->Init());
  return runtime;
}

absl::Status OffloadRuntime::Init() {
  SLUICE_CHECK(!placement_.hbm_in_place || seams_.device->host_addressable());
  SLUICE_ASSIGN_OR_RETURN(
      memory_, TierMemory::Make(layout_, placement_, seams_.device.get(), seams_.host_memory));
  hbm_ = std::make_shared<Arena>(std::move(memory_.hbm));
  const absl::Status pinned = seams_.device->RegisterHost(memory_.pinned.memory());
  pinning_ = pinned.ok() ? "registered with the device" : std::string(Message(pinned));
  // All that drives read and write passes through the pools.
  const MemoryView arenas[] = {memory_.pools};
  SLUICE_ASSIGN_OR_RETURN(engine_, seams_.make_engine(arenas, seams_.files));
  inbox_.SetWaker(engine_.get());
  caller_track_ = trace_.AddTrack("compute");
  store_ = std::make_unique<BlockStore>(std::move(seams_.segments), engine_.get(), options_.io,
                                        seams_.clock, &metrics_, &trace_);
  const Context context{.layout = &layout_,
                        .placement = &placement_,
                        .pieces = &pieces_,
                        .update = &update_,
                        .memory = &memory_,
                        .store = store_.get(),
                        .executor = seams_.executor.get(),
                        .device = seams_.device.get(),
                        .clock = seams_.clock,
                        .inbox = &inbox_,
                        .metrics = &metrics_,
                        .trace = &trace_,
                        .overlap = options_.overlap,
                        .heeds_calls = &calls_.heeded(),
                        .fail = [this](const absl::Status& status) { Fail(status); }};
  residency_ = std::make_unique<Residency>(context, hbm_, options_.stuck_after);
  gradients_ = std::make_unique<Gradients>(context);
  updater_ = std::make_unique<Updater>(context, this);
  if (seams_.ranks) {
    ranks_ = std::make_unique<Ranks>(
        context, std::move(seams_.ranks), gradients_.get(),
        GradExchange::Asks{
            .acquisitions = [this] { return residency_->Acquisitions(); },
            .updating = [this](UnitIndex unit) { return updater_->UnitPending(unit); }},
        [this](UnitIndex unit) { residency_->EndUpdate(unit); }, options_.rank_timeout);
    residency_->SetGathers(ranks_->units());
  }
  gradient_calls_ = std::make_unique<GradientCalls>(
      context, gradients_.get(), ranks_ == nullptr ? nullptr : ranks_->gradients(), updater_.get(),
      &tickets_);
  for (const UnitLayout& unit : layout_.units()) unloaded_.push_back(unit.tensors.size());
  // A caller who waits for each call may begin the next before the one before has come back.
  size_t largest = 0;
  for (const UnitLayout& unit : layout_.units()) largest = std::max(largest, unit.tensors.size());
  for (int i = 0; i < 2; ++i) {
    auto call = std::make_unique<GradsCall>();
    call->given.reserve(largest);
    spare_grads_.Give(std::move(call));
    spare_turns_.Give(std::make_unique<Turn>());
  }
  values_ = std::make_unique<ValueAccess>(context);
  checkpoints_ = std::make_unique<Checkpoints>(
      context, seams_.checkpoint_files != nullptr ? seams_.checkpoint_files : RealFiles(),
      values_.get(), ranks_ == nullptr ? nullptr : ranks_->votes(), seams_.threaded);
  begun_ = true;
  if (!seams_.threaded) return absl::OkStatus();
  try {
    thread_ = std::thread([this, closing = closing_] {
      pthread_setname_np(pthread_self(), "sluice-control");
      ControlLoop();
      if (!closing->handed_over()) return;
      TakeDown();
      delete this;
      closing->Finish();
    });
  } catch (const std::system_error& e) {
    return absl::ResourceExhaustedError(
        fmt::format("the control thread can't be started: {}", e.what()));
  }
  return absl::OkStatus();
}

void OffloadRuntime::RunOnce(Deadline deadline) {
  const bool any = inbox_.HandleAll();
  Views* const views = residency_->views();
  if (calls_.any()) TakeCalls();
  if (views->died_quietly()) views->Settle();
  const bool heeds = HeedsCalls();
  calls_.SetHeeded(heeds);
  const bool unheard = heeds && (calls_.any() || views->died_quietly());
  if (ranks_ != nullptr) {
    ranks_->Poll(!turns_.empty() || !queue_.empty());
    deadline = std::min(deadline, ranks_->NextTime());
  }
  const bool more = any || !inbox_.empty() || unheard;
  NoteWait();
  store_->Poll(more ? kNoWait : deadline);
  values_->Retry();
  if (residency_->waiting()) residency_->CheckStuck(seams_.clock->Now());
  Advance();
  RunQueue();
  CheckDrained();
  CheckEndedWriting();
}

void OffloadRuntime::OnCalls() {
  calls_.Heard();
  TakeCalls();
}

void OffloadRuntime::TakeCalls() {
  calls_.Take(&queue_);
  RunQueue();
}

// Whether something may begin when a unit is acquired or released. Else it need not be heard of
// before something else is.
bool OffloadRuntime::HeedsCalls() {
  return !turns_.empty() || !drains_.empty() || residency_->heeds_calls();
}

// Calls take effect in their order: none overtakes a turn.
void OffloadRuntime::RunQueue() {
  const auto is_turn = [](const Call& call) {
    return std::holds_alternative<std::unique_ptr<Turn>>(call);
  };
  const auto waits = [this](const Call& call) {
    return std::holds_alternative<EndCall>(call) && !EndsWindow();
  };
  while (!queue_.empty() && (turns_.empty() || is_turn(queue_.front())) && !waits(queue_.front())) {
    Call call = std::move(queue_.front());
    queue_.pop_front();
    std::visit([this](auto& one) { Run(one); }, call);
  }
}

void OffloadRuntime::Run(EndCall&) {
  step_times_.Active(seams_.clock->Now());
  residency_->EndIteration();
}

void OffloadRuntime::Run(BeginCall& call) {
  step_times_.Active(seams_.clock->Now());
  residency_->BeginIteration(call.key, call.boundary);
  gradients_->SetBoundary(call.boundary);
  backward_begun_ = !call.boundary;
}

void OffloadRuntime::Run(EnteredCall& call) { residency_->Entered(call.unit); }

void OffloadRuntime::Run(AcquireCall& call) {
  for (TensorIndex tensor : layout_.unit(call.unit).tensors) {
    const absl::Status loaded = CheckLoaded(tensor);
    if (!loaded.ok()) return tickets_.Complete(call.ticket, loaded);
  }
  residency_->Acquire(call.unit, call.stream, [this, ticket = call.ticket](const absl::Status& s) {
    tickets_.Complete(ticket, s);
  });
}

void OffloadRuntime::Run(ReleaseCall& call) {
  if (!residency_->Release(call.unit, std::move(call.fences)).ok())
    metrics_.Get("misused_releases")->Add();
}

void OffloadRuntime::Run(std::unique_ptr<GradsCall>& call) {
  absl::Status status = failure();
  for (const GivenGradient& gradient : call->given) {
    if (status.ok()) status = gradients_->CheckGiven(gradient);
    if (status.ok()) status = CheckLoaded(gradient.tensor);
  }
  bool any = false;
  if (status.ok()) {
    any = gradient_calls_->Take(call->given, std::move(call->fence), call->ticket);
  } else {
    call->fence = Fence();
    tickets_.Complete(call->ticket, status);
  }
  spare_grads_.Give(std::move(call));
  if (any && !backward_begun_) {
    backward_begun_ = true;
    ReadAheadIfUseful();
  }
}

void OffloadRuntime::Run(std::unique_ptr<Turn>& turn) {
  turns_.push_back(std::move(turn));
  Advance();
}

void OffloadRuntime::Run(DrainCall& call) { drains_.push_back(call.ticket); }

void OffloadRuntime::OnUnitUpdated(UnitIndex unit) {
  RenewOnRanks(unit);
  if (ranks_ != nullptr) ranks_->gradients()->GoOn(unit);
  gradient_calls_->GoOn(unit);
}

void OffloadRuntime::OnUpdaterIdle() {
  if (step_ticket_ != 0) tickets_.Complete(std::exchange(step_ticket_, 0), failure());
  ReadAheadIfUseful();
}

bool OffloadRuntime::Quiet() const {
  return turns_.empty() && queue_.empty() && !updater_->updating() && gradients_->idle() &&
         !values_->busy() && store_->idle() && !residency_->transferring() &&
         (ranks_ == nullptr || ranks_->idle());
}

std::string OffloadRuntime::Unsettled() const {
  std::string text;
  const auto add = [&text](std::string_view what, size_t count) {
    if (count > 0) text += fmt::format("{}{} {}", text.empty() ? "" : ", ", count, what);
  };
  const BufferPool& states = memory_.state_buffers;
  const BufferPool& params = memory_.param_buffers;
  add("transfers", store_->idle() ? 0 : 1);
  add("state buffers taken", states.count() - states.free_count());
  add("parameter buffers taken", params.count() - params.free_count());
  const BufferPool& grads = memory_.grad_buffers;
  const BufferPool& adds = memory_.add_buffers;
  add("gradient buffers taken", grads.count() - grads.free_count() - gradients_->kept());
  add("buffers of what is added taken", adds.count() - adds.free_count());
  add("units on their way to HBM, or still read by the caller", residency_->transferring() ? 1 : 0);
  add("gradients or sums", gradients_->idle() ? 0 : 1);
  add("updates", updater_->busy() ? 1 : 0);
  add("values read or written", values_->busy() ? 1 : 0);
  add("operations of ranks", ranks_ == nullptr || ranks_->idle() ? 0 : 1);
  add("calls", turns_.size() + queue_.size());
  return text;
}

void OffloadRuntime::CheckDrained() {
  if (drains_.empty()) return;
  const absl::Status status = failure();
  if (status.ok() ? !Quiet() : updater_->writing() || gradients_->summing_lent()) return;
  for (Ticket ticket : drains_) tickets_.Complete(ticket, status);
  drains_.clear();
}

void OffloadRuntime::Fail(const absl::Status& status) {
  {
    const std::lock_guard lock(mutex_);
    if (!failure_.ok()) return;
    failure_ = Annotate(status, "this runtime has failed and can't go on");
  }
  const absl::Status first = failure();
  residency_->Fail(first);
  updater_->Fail();
  gradient_calls_->Fail(first);
  if (ranks_ != nullptr) ranks_->Fail(first, status);
  gradients_->Fail(first);
}

// What waits for an update that has failed hears of it when no part of it is under way any more.
void OffloadRuntime::CheckEndedWriting() {
  const absl::Status status = failure();
  if (status.ok() || updater_->writing()) return;
  residency_->EndedWriting();
  if (step_ticket_ != 0) tickets_.Complete(std::exchange(step_ticket_, 0), status);
}

}  // namespace sluice
