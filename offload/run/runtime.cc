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
      seams_(std::move(seams)),
      tickets_(seams_.cores.callers_help ? seams_.executor.get() : nullptr),
      loaded_(layout_.tensors().size(), false),
      scaler_(options.loss_scale),
      tensor_steps_(layout_.tensors().size(), 0) {
  last_step_.loss_scale = scaler_.scale();
  commands_.reserve(2 * kQuietMax);
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
                                        &metrics_, &trace_);
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
                        .heeds_calls = &heeds_calls_,
                        .fail = [this](const absl::Status& status) { Fail(status); }};
  residency_ = std::make_unique<Residency>(context, hbm_, options_.stuck_after);
  gradients_ = std::make_unique<Gradients>(context);
  updater_ = std::make_unique<Updater>(context, this);
  gradient_calls_ =
      std::make_unique<GradientCalls>(context, gradients_.get(), updater_.get(), &tickets_);
  values_ = std::make_unique<ValueAccess>(context);
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
  if (calls_ > 0) RunCommands();
  if (residency_->views()->died_quietly()) residency_->views()->Settle();
  heeds_calls_ = HeedsCalls();
  const bool unheard = heeds_calls_ && (calls_ > 0 || residency_->views()->died_quietly());
  const bool more = any || !inbox_.empty() || unheard;
  store_->Poll(more ? kNoWait : deadline);
  if (residency_->waiting()) residency_->CheckStuck(seams_.clock->Now());
  Advance();
  RunQueue();
  CheckDrained();
  CheckEndedWriting();
}

void OffloadRuntime::Heard() {
  const std::lock_guard lock(mutex_);
  announced_ = false;  // here, where the inbox no longer has the event, and nowhere else
}

void OffloadRuntime::RunCommands() {
  {
    const std::lock_guard lock(mutex_);
    for (Command& command : commands_) queue_.push_back(std::move(command));
    commands_.clear();
    calls_ = 0;
  }
  RunQueue();
}

// Whether something may begin when a unit is acquired or released. Else it need not be heard of
// before something else is.
bool OffloadRuntime::HeedsCalls() {
  return !turns_.empty() || !drains_.empty() || residency_->heeds_calls();
}

// Calls take effect in their order: none overtakes a turn.
void OffloadRuntime::RunQueue() {
  while (!queue_.empty() && (turns_.empty() || queue_.front().turn != TurnKind::kNone)) {
    Command command = std::move(queue_.front());
    queue_.pop_front();
    (this->*command.run)(command);
  }
}

void OffloadRuntime::RunAcquire(Command& command) {
  for (TensorIndex tensor : layout_.unit(command.unit).tensors) {
    const absl::Status loaded = CheckLoaded(tensor);
    if (!loaded.ok()) return tickets_.Complete(command.ticket, loaded);
  }
  residency_->Acquire(command.unit, command.stream,
                      [this, ticket = command.ticket](const absl::Status& status) {
                        tickets_.Complete(ticket, status);
                      });
}

void OffloadRuntime::RunEntered(Command& command) { residency_->Entered(command.unit); }

void OffloadRuntime::RunRelease(Command& command) {
  if (!residency_->Release(command.unit, std::move(command.fences)).ok())
    metrics_.Get("misused_releases")->Add();
}

void OffloadRuntime::RunPushGrads(Command& command) {
  absl::Status status = failure();
  for (const GivenGradient& gradient : command.given) {
    if (status.ok()) status = gradients_->CheckGiven(gradient);
    if (status.ok()) status = CheckLoaded(gradient.tensor);
  }
  bool any = false;
  if (status.ok()) {
    any = gradient_calls_->Take(command.given, std::move(command.fences.front()), command.ticket);
  } else {
    tickets_.Complete(command.ticket, status);
  }
  {
    const std::lock_guard lock(mutex_);
    spare_given_.push_back(std::move(command.given));
  }
  if (any && !backward_begun_) {
    backward_begun_ = true;
    ReadAheadIfUseful();
  }
}

void OffloadRuntime::RunBegin(Command& command) {
  residency_->BeginIteration(command.key, command.boundary);
  gradients_->SetBoundary(command.boundary);
  backward_begun_ = !command.boundary;
}

void OffloadRuntime::RunEnd(Command&) { residency_->EndIteration(); }

void OffloadRuntime::RunTurn(Command& command) {
  Turn turn{.kind = command.turn,
            .step = std::move(command.step),
            .value = std::move(command.value),
            .cleared = command.cleared,
            .ticket = command.ticket};
  turns_.push_back(std::move(turn));
  Advance();
}

void OffloadRuntime::RunDrain(Command& command) { drains_.push_back(command.ticket); }

void OffloadRuntime::OnUnitUpdated(UnitIndex unit) {
  residency_->EndUpdate(unit);
  gradient_calls_->GoOn(unit);
}

void OffloadRuntime::OnUpdaterIdle() {
  if (step_ticket_ != 0) tickets_.Complete(std::exchange(step_ticket_, 0), failure());
  ReadAheadIfUseful();
}

bool OffloadRuntime::Quiet() const {
  return turns_.empty() && queue_.empty() && !updater_->updating() && gradients_->idle() &&
         !values_->busy() && store_->idle() && !residency_->moving();
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
  add("units on their way to HBM, or still read by the caller", residency_->moving() ? 1 : 0);
  add("gradients or sums", gradients_->idle() ? 0 : 1);
  add("updates", updater_->busy() ? 1 : 0);
  add("values read or written", values_->busy() ? 1 : 0);
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
