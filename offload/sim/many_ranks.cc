#include "offload/sim/many_ranks.h"

#include <algorithm>
#include <ctime>
#include <memory>
#include <utility>

#include "comm/sim_mirror.h"
#include "core/config.h"
#include "core/sim_memory.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nvme/sim_io_engine.h"

namespace sluice {

namespace {

// CPU time of this thread.
double ThreadSeconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// One rank: its runtime, its program, and when each of them runs next.
class SimRankHost final : public ScriptHost, public Waker {
 public:
  SimRankHost(SimWorld* world, const SimHosts& hosts) : world_(world), hosts_(hosts) {}

  absl::Status Make(const ModelSpec& spec, const RuntimeConfig& config, RankLinks links,
                    const std::shared_ptr<SimCores>& cores);
  void Start(const SimProgram& program) {
    script_.emplace(program(runtime_.get(), this, &times_));
    Resume();
  }

  // Of the runtime's loop and of the program.
  TimePoint NextTime() const { return std::min({loop_at_, next_loop_, resume_at_}); }
  // Does what is due; returns whether anything was.
  bool RunDue();

  void Wake() override { loop_at_ = std::min(loop_at_, world_->Now() + hosts_.wake); }
  TimePoint Now() const override { return world_->Now(); }
  bool AwaitTicket(Ticket ticket) override {
    ticket_ = ticket;
    if (CheckTicket()) return true;
    if (hosts_.callers_help) executor_->SetHelpers(1);
    return false;
  }
  bool AwaitTime(Nanos time) override {
    resume_at_ = world_->Now() + time;
    return false;
  }
  absl::Status TakeStatus() override { return std::move(status_); }

  bool done() const { return script_->done(); }
  absl::Status status() const { return script_->status(); }
  OffloadRuntime* runtime() { return runtime_.get(); }
  const TrainingTimes& times() const { return times_; }
  double loop_seconds() const { return loop_seconds_; }
  Bytes sent() const;

 private:
  bool CheckTicket() {
    std::optional<absl::Status> result = runtime_->Wait(ticket_, std::chrono::milliseconds(0));
    if (!result) return false;
    status_ = *std::move(result);
    ticket_ = 0;
    return true;
  }
  void Resume() {
    resume_at_ = kForever;
    if (hosts_.callers_help) executor_->SetHelpers(0);
    script_->Resume();
  }

  SimWorld* const world_;
  const SimHosts& hosts_;
  SimMemory memory_;
  std::vector<const Communicator*> links_;
  SimExecutor* executor_ = nullptr;
  std::unique_ptr<OffloadRuntime> runtime_;
  std::optional<Script> script_;
  TrainingTimes times_;
  Ticket ticket_ = 0;  // that the program waits for
  absl::Status status_;
  TimePoint loop_at_{0};    // it was woken, and runs then
  TimePoint next_loop_{0};  // it runs then in any case
  TimePoint resume_at_ = kForever;
  double loop_seconds_ = 0;
};

absl::Status SimRankHost::Make(const ModelSpec& spec, const RuntimeConfig& config, RankLinks links,
                               const std::shared_ptr<SimCores>& cores) {
  SLUICE_ASSIGN_OR_RETURN(Plan plan, MakePlan(spec, config));
  if (hosts_.place) {
    hosts_.place(plan.layout, &plan.placement);
    SumUp(plan.layout, &plan.placement);
  }
  Seams seams;
  seams.clock = world_;
  seams.host_memory = &memory_;
  seams.threaded = false;
  seams.cores.compute = seams.cores.update = seams.cores.nodes = "simulated";
  SimWork work = hosts_.work;
  work.scale = hosts_.scale;
  work.cores = cores;
  if (!hosts_.jitter) work.percent_min = work.percent_max = 100;
  std::unique_ptr<SimExecutor> executor = MakeSimExecutor(world_, hosts_.workers, work);
  executor_ = executor.get();
  seams.executor = std::move(executor);
  seams.device = MakeSimDevice({.link_bytes_per_second = hosts_.link_bytes_per_second,
                                .host_addressable = plan.placement.hbm_in_place},
                               world_, &memory_);
  SLUICE_ASSIGN_OR_RETURN(std::vector<Drive> drives, DrivesOf(config));
  if (drives.empty()) drives.push_back({.path = "simulated"});
  seams.segments = SegmentsOf(plan, drives);
  seams.make_engine = [this, sizes = seams.segments.file_sizes,
                       file_drive = seams.segments.file_drive, count = drives.size(),
                       alignment = plan.placement.io_alignment, limits = config.io](
                          std::span<const MemoryView>, std::span<const DirectFile>) {
    const double rate = hosts_.drive_bytes_per_second / hosts_.scale / static_cast<double>(count);
    return absl::StatusOr<std::unique_ptr<IoEngine>>(
        MakeSimIoEngine({.bytes_per_second = std::vector<double>(count, std::max(rate, 1.0)),
                         .file_drive = file_drive,
                         .latency_min = hosts_.drive_latency,
                         .latency_max = hosts_.drive_latency,
                         .alignment = alignment,
                         .waker = this},
                        sizes, limits, world_));
  };
  links_ = {links.gradients.get(), links.gathers.get()};
  if (links) seams.ranks = std::move(links);
  const RuntimeOptions options = OptionsOf(config, plan);
  SLUICE_ASSIGN_OR_RETURN(
      runtime_, OffloadRuntime::Create(std::move(plan.layout), std::move(plan.placement), options,
                                       std::move(seams)));
  return absl::OkStatus();
}

Bytes SimRankHost::sent() const {
  Bytes sent;
  for (const Communicator* link : links_) {
    if (link == nullptr) continue;
    for (const CommCount& count : link->counts()) sent += count.sent;
  }
  return sent;
}

bool SimRankHost::RunDue() {
  const TimePoint now = world_->Now();
  bool any = false;
  if (std::min(loop_at_, next_loop_) <= now) {
    loop_at_ = kForever;
    const double begin = ThreadSeconds();
    runtime_->RunOnce(kNoWait);
    if (!times_.steps.empty()) loop_seconds_ += ThreadSeconds() - begin;
    next_loop_ = std::max(runtime_->NextTime(), now + Nanos(1000));
    any = true;
  }
  if (ticket_ != 0 && CheckTicket())
    resume_at_ = hosts_.program_wakes_at_once ? now : now + hosts_.wake;
  if (resume_at_ <= now && ticket_ == 0) {
    Resume();
    any = true;
  }
  return any;
}

// FNV-1a (Fowler, Noll, Vo) over numbers.
void Mix(uint64_t* hash, uint64_t number) {
  for (int i = 0; i < 64; i += 8) *hash = (*hash ^ (number >> i & 0xff)) * 1099511628211u;
}

struct Groups {
  std::vector<std::unique_ptr<Communicator>> agreement, gradients, gathers;
};
Groups MakeGroups(SimNetwork* network, const SimHosts& hosts) {
  const CommOptions options{.timeout = std::chrono::hours(48)};
  const auto make = [&](double scale) {
    return hosts.mirrored ? MakeMirroredGroup(network, options, scale)
                          : network->MakeGroup(options, scale);
  };
  return {.agreement = make(1), .gradients = make(hosts.scale), .gathers = make(hosts.scale)};
}

}  // namespace

double SimTraining::StepSeconds(size_t skipped) const {
  const std::vector<TimePoint>& steps = times[0].steps;
  SLUICE_CHECK(steps.size() > skipped + 1);
  return Seconds(steps.back() - steps[skipped]) / static_cast<double>(steps.size() - 1 - skipped);
}

double SimTraining::WaitedSeconds(size_t skipped) const {
  const std::vector<Nanos>& waited = times[0].waited;
  Nanos sum{0};
  for (size_t i = skipped + 1; i < waited.size(); ++i) sum += waited[i];
  return Seconds(sum) / static_cast<double>(waited.size() - 1 - skipped);
}

absl::StatusOr<SimTraining> SimulateTraining(const ModelSpec& spec, const RuntimeConfig& config,
                                             const SimHosts& hosts, const TrainingScript& script) {
  return SimulatePrograms(
      spec, config, hosts,
      [&script](OffloadRuntime* runtime, ScriptHost* host, TrainingTimes* times) {
        return Train(runtime, script, host, times);
      });
}

absl::StatusOr<SimTraining> SimulatePrograms(const ModelSpec& spec, const RuntimeConfig& config,
                                             const SimHosts& hosts, const SimProgram& program) {
  const double began = ThreadSeconds();
  SimWorld world(hosts.seed);
  world.MuteLog();
  SimNetwork network(hosts.network, hosts.ranks, &world);
  const uint32_t per_host = std::min(hosts.network.ranks_per_host, hosts.ranks);
  const uint32_t there = hosts.mirrored ? per_host : hosts.ranks;
  Groups groups;
  if (hosts.ranks > 1) groups = MakeGroups(&network, hosts);
  std::vector<std::unique_ptr<SimRankHost>> ranks;
  std::shared_ptr<SimCores> cores;
  for (uint32_t r = 0; r < there; ++r) {
    if (hosts.cores > 0 && r % per_host == 0) cores = std::make_shared<SimCores>(hosts.cores);
    RuntimeConfig of_rank = config;
    of_rank.workers = hosts.workers;
    of_rank.sharding.rank = Rank(r);
    of_rank.sharding.ranks = hosts.ranks;
    RankLinks links;
    if (hosts.ranks > 1) {
      links = {.agreement = std::move(groups.agreement[r]),
               .gradients = std::move(groups.gradients[r]),
               .gathers = std::move(groups.gathers[r])};
    }
    ranks.push_back(std::make_unique<SimRankHost>(&world, hosts));
    SLUICE_RETURN_IF_ERROR(ranks.back()->Make(spec, of_rank, std::move(links), cores));
  }
  std::vector<Bytes> sent;  // by rank 0, when each step was over
  SimTraining result;
  result.digest = 14695981039346656037u;
  for (const auto& rank : ranks) rank->Start(program);
  const auto all_done = [&] {
    return std::ranges::all_of(ranks, [](const auto& rank) { return rank->done(); });
  };
  while (!all_done()) {
    bool any = false;
    TimePoint next = kForever;
    for (size_t r = 0; r < ranks.size(); ++r) {
      if (ranks[r]->RunDue()) {
        Mix(&result.digest, static_cast<uint64_t>(world.Now().count()) * ranks.size() + r);
        any = true;
      }
      if (ranks[r]->done() && !ranks[r]->status().ok()) return ranks[r]->status();
      next = std::min(next, ranks[r]->NextTime());
    }
    while (sent.size() < ranks[0]->times().steps.size()) sent.push_back(ranks[0]->sent());
    if (any) continue;
    world.RunNext(next);
    if (world.Now() > std::chrono::hours(24) * 3)
      return absl::DeadlineExceededError("a simulated training does not end");
  }
  if (hosts.at_end) hosts.at_end(*ranks[0]->runtime());
  result.traffic = ranks[0]->runtime()->Traffic();
  sent.resize(ranks[0]->times().steps.size(), ranks[0]->sent());
  if (sent.size() > 2)
    result.sent = (sent.back() - sent[1]) / (static_cast<int64_t>(sent.size()) - 2);
  result.control_seconds = ranks[0]->loop_seconds();
  for (const auto& rank : ranks) result.times.push_back(rank->times());
  result.real_seconds = ThreadSeconds() - began;
  return result;
}

}  // namespace sluice
