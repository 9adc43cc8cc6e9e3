#include "offload/sim/replay.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "core/status.h"
#include "nlohmann/json.hpp"
#include "offload/sim/many_ranks.h"
#include "optim/adamw.h"
#include "optim/adamw_rule.h"

namespace sluice {

namespace {

using Kind = RecordedCall::Kind;

constexpr double kInfinite = 1e18;
constexpr int kSkipped = 2;             // steps: the first learns the order
constexpr double kStateBytes = 24;      // of an element, read and written
constexpr double kUpdateBytes = 28;     // of memory that an update moves, an element
constexpr double kBytesOfGradient = 4;  // moved for one that is taken: read and written, in bf16

double OrInfinite(double rate) { return rate > 0 ? rate : kInfinite; }

SimHosts HostsOf(const Recording& recording, const HardwareRates& rates, double scale) {
  SimHosts hosts;
  hosts.workers = recording.config.workers;
  hosts.callers_help = recording.callers_help;
  hosts.program_wakes_at_once = true;  // that is in what it was on its own for
  hosts.scale = scale;
  hosts.drive_bytes_per_second = OrInfinite(rates.nvme_bytes);
  hosts.link_bytes_per_second = OrInfinite(rates.copy_bytes) / scale;
  const double workers = hosts.workers;
  const double update = OrInfinite(rates.update_elements) / workers;
  const double checksum = OrInfinite(rates.checksum_bytes) / workers;
  // Behind a link copies are its business, and what the host copies is as fast as its memory.
  const bool in_place = recording.config.placement.hbm_in_place;
  const double copy = in_place ? OrInfinite(rates.copy_bytes) / workers : update * kUpdateBytes / 2;
  const auto rate = [&hosts](TaskKind kind) -> double& {
    return hosts.work.per_second[static_cast<size_t>(kind)];
  };
  rate(TaskKind::kUpdate) = update;
  rate(TaskKind::kStream) = 1 / (1 / update + kStateBytes / checksum);
  rate(TaskKind::kCopy) = rate(TaskKind::kSum) = copy;
  rate(TaskKind::kTake) = copy / kBytesOfGradient;
  rate(TaskKind::kCheck) = checksum;
  return hosts;
}

int64_t ElementsOf(const ModelSpec& spec) {
  int64_t elements = 0;
  for (const ModelSpec::Tensor& tensor : spec.tensors)
    elements = std::min(kElementsMax, elements + tensor.elements);
  return elements;
}

int64_t Scaled(int64_t amount, double scale, int64_t multiple) {
  const double parts = static_cast<double>(amount) / scale / static_cast<double>(multiple);
  return std::max<int64_t>(1, std::llround(parts)) * multiple;
}

void ScaleDown(double scale, ModelSpec* spec, RuntimeConfig* config) {
  if (scale == 1) return;
  for (ModelSpec::Tensor& tensor : spec->tensors)
    tensor.elements = Scaled(tensor.elements, scale, 1);
  for (Bytes* const budget :
       {&config->budgets.hbm, &config->budgets.pinned, &config->budgets.nvme}) {
    if (*budget < kNoLimit) *budget = Bytes(Scaled(budget->value(), scale, 1));
  }
  config->chunk_elements = Scaled(config->chunk_elements, scale, kCellElements);
  PlacementOptions& p = config->placement;
  p.task_elements = Scaled(p.task_elements, scale, kPieceElements);
  p.copy_bytes = Bytes(Scaled(p.copy_bytes.value(), scale, 1));
  p.resident_elements_max =
      static_cast<int64_t>(static_cast<double>(p.resident_elements_max) / scale);
}

// Of compute on a GPU, the seconds that are known are spread over the units that were there, by
// their elements. Backward is from the first unit on that gives gradients.
absl::Status SpreadCompute(const HardwareRates& rates, Recording* recording) {
  if (rates.forward_seconds + rates.backward_seconds <= 0) {
    return absl::FailedPreconditionError(
        "how long the GPU computes is not known: give forward_seconds and backward_seconds to "
        "set_rates() before the step that is recorded");
  }
  std::vector<double> weights(recording->spec.units.size(), 0);
  for (const ModelSpec::Tensor& tensor : recording->spec.tensors)
    weights[tensor.unit.value()] += static_cast<double>(tensor.elements);
  std::vector<RecordedCall>& calls = recording->calls;
  std::vector<bool> backward(calls.size(), false);
  for (size_t i = 0; i < calls.size(); ++i) {
    if (calls[i].kind == Kind::kBegin || i == 0) continue;
    backward[i] = backward[i - 1] || calls[i].kind == Kind::kGrads;
    if (calls[i].kind == Kind::kEnd) backward[i] = false;
  }
  double sums[2] = {0, 0};
  for (size_t i = 0; i < calls.size(); ++i) {
    calls[i].own = Nanos(0);
    if (calls[i].kind == Kind::kRelease)
      sums[backward[i]] += weights[static_cast<size_t>(calls[i].index)];
  }
  for (size_t i = 0; i < calls.size(); ++i) {
    if (calls[i].kind != Kind::kRelease) continue;
    const double share = weights[static_cast<size_t>(calls[i].index)] / sums[backward[i]];
    const double seconds = backward[i] ? rates.backward_seconds : rates.forward_seconds;
    calls[i].own = Nanos(std::llround(share * seconds * 1e9));
  }
  return absl::OkStatus();
}

// Statuses are looked at one by one: a macro that returns can't end a coroutine.
Script Again(OffloadRuntime* runtime, const std::vector<RecordedCall>* calls, int steps,
             ScriptHost* host, TrainingTimes* times, std::string* report) {
  const ModelLayout& layout = runtime->layout();
  absl::Status status;
  for (uint32_t t = 0; t < layout.tensors().size(); ++t) {
    status = co_await TicketDone{host, runtime->Access(LoadOfNumbers(layout, TensorIndex(t)))};
    if (!status.ok()) co_return status;
  }
  times->begin = host->Now();
  std::vector<Ticket> tickets(calls->size(), 0);
  Ticket step_before = 0;
  std::vector<GivenGradient> given;
  for (int step = 0; step < steps + kSkipped; ++step) {
    for (size_t i = 0; i < calls->size(); ++i) {
      const RecordedCall& call = (*calls)[i];
      co_await TimePassed{host, call.own};
      const UnitIndex unit(static_cast<uint32_t>(call.index));
      switch (call.kind) {
        case Kind::kBegin:
          runtime->BeginIteration(static_cast<uint32_t>(call.index / 2), call.index % 2 == 1);
          break;
        case Kind::kEnd:
          runtime->EndIteration();
          break;
        case Kind::kAcquire:
          tickets[i] = runtime->Acquire(unit);
          break;
        case Kind::kRelease:
          status = runtime->Release(unit);
          break;
        case Kind::kGrads:
          given.clear();
          for (size_t g = i; g == i || (*calls)[g].kind == Kind::kMoreGrads; ++g)
            given.push_back(
                GradientOfNumbers(layout, TensorIndex(static_cast<uint32_t>((*calls)[g].index))));
          tickets[i] = runtime->PushGrads(given);
          break;
        case Kind::kMoreGrads:
          break;
        case Kind::kDrain:
          tickets[i] = runtime->Drain();
          break;
        case Kind::kWait: {
          const Ticket ticket =
              call.index < 0 ? step_before : tickets[static_cast<size_t>(call.index)];
          if (ticket != 0) status = co_await TicketDone{host, ticket};
          break;
        }
        case Kind::kStep: {
          if (step == kSkipped - 1) runtime->ResetCounters();
          if (step == steps + kSkipped - 1) *report = runtime->ReportJson();
          times->steps.push_back(host->Now());
          StepRequest request = runtime->BlankStep();
          request.groups.assign(1, Hyperparameters::Of(AdamWHyper{.lr = 1e-4}));
          request.clip_norm = 1;
          step_before = runtime->Step(std::move(request));
          break;
        }
      }
      if (!status.ok()) co_return status;
    }
  }
  co_return co_await TicketDone{host, runtime->Drain()};
}

}  // namespace

absl::StatusOr<Replay> ReplayStep(const Recording& recorded, const ReplayOptions& options) {
  Recording recording = recorded;
  recording.config.budgets = options.budgets;
  HardwareRates rates = options.rates;
  Replay replay;
  SLUICE_ASSIGN_OR_RETURN(const Plan plan, MakePlan(recording.spec, recording.config));
  if (recording.on_gpu) SLUICE_RETURN_IF_ERROR(SpreadCompute(rates, &recording));
  replay.planned = {plan.placement.hbm(), plan.placement.pinned(), plan.placement.nvme()};
  replay.traffic = TrafficOf(plan.layout, plan.placement);
  bool backward = false;
  Nanos own[2] = {};
  for (const RecordedCall& call : recording.calls) {
    own[backward] += call.own;
    backward = backward || call.kind == Kind::kGrads;
  }
  replay.own_seconds = Seconds(own[0] + own[1]);
  rates.forward_seconds = Seconds(own[0]);
  rates.backward_seconds = Seconds(own[1]);
  rates.shared_cores = false;  // what is simulated computes beside the workers
  replay.floor = Floor(replay.traffic, rates);
  replay.scale = std::max(1.0, static_cast<double>(ElementsOf(recording.spec)) /
                                   static_cast<double>(options.elements_max));
  ScaleDown(replay.scale, &recording.spec, &recording.config);
  const SimHosts hosts = HostsOf(recording, rates, replay.scale);
  std::string text;
  SLUICE_ASSIGN_OR_RETURN(
      const SimTraining training,
      SimulatePrograms(recording.spec, recording.config, hosts,
                       [&](OffloadRuntime* runtime, ScriptHost* host, TrainingTimes* times) {
                         return Again(runtime, &recording.calls, options.steps, host, times, &text);
                       }));
  const std::vector<TimePoint>& steps = training.times[0].steps;
  replay.step_seconds = Seconds(steps.back() - steps[kSkipped - 1]) / options.steps;
  const nlohmann::json report = nlohmann::json::parse(text);
  for (size_t w = 0; w < kWaits; ++w) {
    replay.waited_seconds[w] =
        report["waited_for"]["seconds"][Name(static_cast<WaitedFor>(w))].get<double>() /
        options.steps;
  }
  return replay;
}

}  // namespace sluice
