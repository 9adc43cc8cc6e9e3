// Most operations are made of several: a value of chunks, a unit of pieces, a gradient of a copy
// and an addition, an update of reads, tasks, copies and writes. Whichever part fails, an operation
// ends with the first error, and not before its last part has: the caller's memory can't be touched
// here once the ticket it was handed over with is done, so whoever touches it then ends the test.

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <deque>

#include "fmt/format.h"
#include "tests/core/seeds.h"
#include "tests/offload/simulation.h"

namespace sluice {
namespace {

using testing::OddModel;
using testing::Trainer;

constexpr FloatType kType = FloatType::kBf16;

// Memory of the caller's, which it takes back.
class OwnMemory {
 public:
  explicit OwnMemory(const std::vector<std::byte>& bytes)
      : size_(bytes.size()),
        data_(static_cast<std::byte*>(
            mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    SLUICE_CHECK(data_ != MAP_FAILED);
    std::copy(bytes.begin(), bytes.end(), data_);
  }
  OwnMemory(const OwnMemory&) = delete;
  OwnMemory& operator=(const OwnMemory&) = delete;
  ~OwnMemory() { munmap(data_, size_); }
  void TakeBack() { SLUICE_CHECK(mprotect(data_, size_, PROT_NONE) == 0); }
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const size_t size_;
  std::byte* const data_;
};

struct Part {
  SimSeam seam;
  SimFault fault;
  const char* name;
  bool states_in_hbm = false;
};

class PartsTest : public ::testing::TestWithParam<Part> {
 protected:
  // Half of the units' parameters stay with the caller, and masters of one of them, unless states
  // live in HBM.
  static ModelSpec Model(bool lent) {
    ModelSpec spec = OddModel();
    for (ModelSpec::Tensor& tensor : spec.tensors) {
      if (lent && tensor.unit.value() % 2 == 1)
        tensor.keep = tensor.unit.value() == 3 ? Keep::kMoments : Keep::kStates;
    }
    return spec;
  }
  static RuntimeConfig Config(const Part& part, uint64_t n) {
    RuntimeConfig config = testing::ConfigOf(n % 5);
    config.types = {kType, kType};
    config.overlap = n % 2 == 0;
    config.budgets.hbm = part.states_in_hbm ? MiB(8) : KiB(300);
    if (part.states_in_hbm) {
      config.placement.lowest_state_tier = Tier::kHbm;
      config.highest_state_tier_on_host = Tier::kHbm;
      config.nvme_paths.clear();
    } else {
      config.budgets.pinned = testing::SmallestBudgets(Model(true), config).pinned;
    }
    return config;
  }
};

INSTANTIATE_TEST_SUITE_P(
    All, PartsTest,
    ::testing::Values(Part{SimSeam::kRead, SimFault::kError, "Read"},
                      Part{SimSeam::kRead, SimFault::kRefused, "RefusedRead"},
                      Part{SimSeam::kRead, SimFault::kShort, "ShortRead"},
                      Part{SimSeam::kRead, SimFault::kCorrupt, "Check"},
                      Part{SimSeam::kWrite, SimFault::kError, "Write"},
                      Part{SimSeam::kWrite, SimFault::kRefused, "RefusedWrite"},
                      Part{SimSeam::kWrite, SimFault::kShort, "ShortWrite"},
                      Part{SimSeam::kCopy, SimFault::kError, "Copy"},
                      Part{SimSeam::kCopy, SimFault::kError, "CopyWithStatesInHbm", true}),
    [](const ::testing::TestParamInfo<Part>& info) { return std::string(info.param.name); });

// Drives a training until something fails, all at once where the calls allow it.
class Driver {
 public:
  Driver(SimRuntime* sim, const ModelSpec& spec, uint64_t seed)
      : sim_(sim), spec_(spec), seed_(seed), trainer_(sim->runtime.get(), spec, {}) {}

  void Run() {
    if (!Values(true)) return;
    for (uint32_t t = 0; t < spec_.tensors.size(); ++t) {
      if (!IsLent(spec_.tensors[t].keep)) continue;
      params_.resize(spec_.tensors.size());
      params_[t] = NewParam(t);
    }
    for (int step = 0; step < 2; ++step) {
      if (!Gradients() || !Gradients() || !Step()) return;
    }
    Values(false);
  }

 private:
  OffloadRuntime* runtime() { return sim_->runtime.get(); }
  std::vector<std::byte> Zeros(uint32_t tensor, int64_t size) const {
    return std::vector<std::byte>(static_cast<size_t>(spec_.tensors[tensor].elements * size));
  }
  bool of_moments(uint32_t tensor) const { return spec_.tensors[tensor].keep == Keep::kMoments; }
  FloatType ParamType(uint32_t tensor) const {
    return of_moments(tensor) ? FloatType::kF32 : kType;
  }
  std::unique_ptr<OwnMemory> NewParam(uint32_t tensor) const {
    return std::make_unique<OwnMemory>(Zeros(tensor, SizeOf(ParamType(tensor))));
  }
  // The ticket's memory is the caller's again, and all that is under way goes on.
  bool Ends(Ticket ticket, OwnMemory* memory) {
    const absl::Status status = trainer_.Wait(ticket);
    EXPECT_FALSE(absl::IsDeadlineExceeded(status));
    memory->TakeBack();
    sim_->runtime->RunOnce(sim_->world->Now() + Nanos(10'000));
    return status.ok();
  }
  bool Values(bool write) {
    std::vector<Ticket> tickets;
    for (uint32_t t = 0; t < spec_.tensors.size(); ++t) {
      memory_.emplace_back(Zeros(t, 4));
      tickets.push_back(runtime()->Access({.write = write,
                                           .tensor = TensorIndex(t),
                                           .field = of_moments(t) ? Field::kExpAvg : Field::kMaster,
                                           .data = memory_.back().data(),
                                           .done = nullptr}));
    }
    return EndAll(tickets);
  }
  bool Gradients() {
    runtime()->BeginIteration(1, true);
    bool ok = true;
    for (uint32_t u = 0; u < spec_.units.size(); ++u) {
      const UnitIndex unit(u);
      ok = trainer_.Wait(runtime()->Acquire(unit)).ok() && ok;
      for (TensorIndex t : runtime()->layout().unit(unit).tensors) {
        if (!params_.empty() && params_[t.value()] != nullptr && seed_ % 3 == 0 && stepped_) {
          params_[t.value()]->TakeBack();  // the unit is updated, or its update has ended
          taken_.push_back(std::exchange(params_[t.value()], NewParam(t.value())));
        }
      }
      if (ok) {
        EXPECT_TRUE(runtime()->Release(unit).ok());
      }
    }
    runtime()->EndIteration();
    if (!ok) return false;
    std::vector<Ticket> tickets;
    for (uint32_t t = 0; t < spec_.tensors.size(); ++t) {
      memory_.emplace_back(Zeros(t, 2));
      tickets.push_back(runtime()->PushGrad(
          TensorIndex(t), ConstMemoryView(memory_.back().data(), memory_.back().size())));
    }
    return EndAll(tickets);
  }
  bool Step() {
    StepRequest request{.groups = testing::Groups(), .lent = {}, .clip_norm = 1.0};
    for (uint32_t t = 0; t < params_.size(); ++t)
      request.lent.push_back({params_[t] == nullptr ? nullptr : params_[t]->data(), ParamType(t)});
    const Ticket ticket = runtime()->Step(std::move(request));
    stepped_ = true;
    const bool ok = trainer_.Wait(ticket).ok();
    if (seed_ % 3 == 0 && ok) return true;
    // Without overlap the update has ended with the step; else when it is drained.
    const bool drained = (!ok && seed_ % 2 == 1) || trainer_.Wait(runtime()->Drain()).ok();
    for (uint32_t t = 0; t < params_.size(); ++t) {
      if (params_[t] == nullptr) continue;
      params_[t]->TakeBack();
      taken_.push_back(std::exchange(params_[t], NewParam(t)));
    }
    return ok && drained;
  }
  bool EndAll(const std::vector<Ticket>& tickets) {
    bool ok = true;
    for (size_t i = 0; i < tickets.size(); ++i)
      ok = Ends(tickets[i], &memory_[memory_.size() - tickets.size() + i]) && ok;
    return ok;
  }

  SimRuntime* const sim_;
  const ModelSpec spec_;
  const uint64_t seed_;
  Trainer trainer_;
  bool stepped_ = false;
  std::deque<OwnMemory> memory_;
  std::vector<std::unique_ptr<OwnMemory>> params_, taken_;  // by tensor
};

TEST_P(PartsTest, NothingEndsWhileAPartOfItIsUnderWay) {
  const Part& part = GetParam();
  int failed = 0;
  for (uint64_t n = 1;; n += 1 + n / 30) {
    SCOPED_TRACE(fmt::format("call {}", n));
    const auto faults = [&](SimFaults* f) {
      f->Script(part.seam, part.fault, n, SimFaults::Repeat::kOnce);
      f->Draw(SimSeam::kTask, SimFault::kLate, 3);  // parts end far apart
      f->Draw(SimSeam::kCopy, SimFault::kLate, 5);
    };
    const ModelSpec spec = Model(!part.states_in_hbm);
    absl::StatusOr<SimRuntime> sim =
        MakeSimRuntime(spec, Config(part, n), {.seed = n, .faults = faults});
    ASSERT_TRUE(sim.ok()) << sim.status();
    const uint64_t calls_max = n;
    Driver driver(&*sim, spec, n);
    driver.Run();
    EXPECT_EQ(testing::Settle(&*sim), "");
    if (sim->world->faults()->calls(part.seam) < calls_max) break;
    ++failed;
  }
  EXPECT_GT(failed, 10);
}

}  // namespace
}  // namespace sluice
