// Calls take effect in the order in which they are made, also when the caller waits for none of
// them: random calls against a model that carries each out at once.

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "tests/core/seeds.h"
#include "tests/offload/simulation.h"

namespace sluice {
namespace {

using testing::AdamWGroups;
using testing::DrawnFrom;
using testing::Groups;
using testing::Mix;
using testing::ParamsOf;
using testing::ValuesOf;

const testing::TrainerOptions kDefaults;  // says the types of units that say none

// The model: what the runtime's tensors hold if every call had ended before the next began.
class Model {
 public:
  explicit Model(const ModelSpec& spec) : spec_(spec), tensors_(spec.tensors.size()) {
    for (size_t t = 0; t < tensors_.size(); ++t) {
      for (std::vector<float>& field : tensors_[t].states)
        field.assign(static_cast<size_t>(spec.tensors[t].elements), 0.0f);
    }
  }

  std::vector<float>& field(uint32_t t, Field f) {
    return tensors_[t].states[static_cast<size_t>(f) - static_cast<size_t>(Field::kMaster)];
  }
  bool has_grad(uint32_t t) const { return !tensors_[t].grad.empty(); }
  bool loaded(uint32_t t) const { return tensors_[t].loaded; }
  bool frozen(uint32_t t) const { return spec_.tensors[t].keep == Keep::kParam; }
  UnitTypes types(uint32_t t) const { return kDefaults.TypesOf(spec_, t); }
  std::vector<float> grad(uint32_t t) const { return ValuesOf(tensors_[t].grad, types(t).grad); }

  // A frozen tensor is its compute copy.
  void Write(uint32_t t, Field f, const std::vector<float>& values) {
    const ElementType type = types(t).param;
    field(t, f) = frozen(t) ? ValuesOf(ParamsOf(values, type), type) : values;
    tensors_[t].loaded = tensors_[t].loaded || f == Field::kMaster;
  }
  void WriteGrad(uint32_t t, const std::vector<float>& values) {
    tensors_[t].grad = ParamsOf(values, types(t).grad);
  }
  void ClearGrad(uint32_t t) { tensors_[t].grad.clear(); }

  void Push(uint32_t t, const std::vector<std::byte>& grad) {
    std::vector<std::byte>& sum = tensors_[t].grad;
    if (sum.empty()) {
      sum = grad;
    } else {
      Accumulate(sum.data(), grad.data(), types(t).grad,
                 static_cast<size_t>(spec_.tensors[t].elements));
    }
  }
  void ZeroGrad() {
    for (Tensor& tensor : tensors_) tensor.grad.clear();
  }

  void Step(double clip_norm) {
    std::vector<double> cells;
    for (uint32_t t = 0; t < tensors_.size(); ++t) {
      for (int64_t at = 0; at < spec_.tensors[t].elements; at += kCellElements) {
        const auto n = static_cast<size_t>(std::min(kCellElements, spec_.tensors[t].elements - at));
        const FloatType type = types(t).grad;
        const std::byte* from = tensors_[t].grad.data() + at * SizeOf(type);
        cells.push_back(has_grad(t) ? CellSquareSum(from, type, n) : 0.0);
      }
    }
    const ClipDecision decision = DecideClip(NormOfCells(cells), 1.0, clip_norm);
    if (decision.overflow) return ZeroGrad();
    const ScopedFlushDenormals flush;
    for (uint32_t t = 0; t < tensors_.size(); ++t) {
      Tensor& tensor = tensors_[t];
      if (tensor.grad.empty()) continue;
      AdamWUpdate(MakeCoefficients(AdamWGroups()[spec_.tensors[t].group], ++tensor.updates,
                                   decision.grad_scale),
                  {.master = tensor.states[0],
                   .exp_avg = tensor.states[1],
                   .exp_avg_sq = tensor.states[2],
                   .grad = tensor.grad.data(),
                   .grad_type = types(t).grad});
    }
    ZeroGrad();
  }

  std::vector<std::byte> Params(uint32_t t) {
    return ParamsOf(field(t, Field::kMaster), types(t).param);
  }

 private:
  struct Tensor {
    std::vector<float> states[3];  // master, exp_avg, exp_avg_sq
    std::vector<std::byte> grad;   // empty: none
    int64_t updates = 0;
    bool loaded = false;  // its master was written
  };
  const ModelSpec spec_;
  std::vector<Tensor> tensors_;
};

// Calls a runtime and the model alike, and compares when the runtime's tickets are done.
class RandomCaller {
 public:
  RandomCaller(SimRuntime* sim, const ModelSpec& spec, uint64_t seed)
      : spec_(spec),
        runtime_(sim->runtime.get()),
        faults_(sim->world->faults()),
        dice_(seed * 31),
        model_(spec_) {}

  // Every tensor, or all but some, which get their values later or never.
  void Load(bool all) {
    for (uint32_t t = 0; t < spec_.tensors.size(); ++t) {
      if (all || !dice_.OneIn(3)) Write(t, Field::kMaster);
    }
  }

  void CallAnything() {
    const uint32_t t = Tensor();
    const Field fields[] = {Field::kMaster, Field::kExpAvg, Field::kExpAvgSq};
    const Field field = fields[dice_.Uniform(0, 2)];
    const uint64_t what = dice_.Uniform(0, 99);
    if (what < 32) return Push(t);
    if (what < 37) return WriteGrad(t);
    if (what < 40) return ClearGrad(t);
    if (what < 50) return Read(t, field);
    if (what < 55) return ReadGrad(t);
    if (what < 60) return Write(t, field);
    if (what < 75) return Use(spec_.tensors[t].unit);
    if (what < 80) return Step();
    if (what < 84) return Zero();
    if (what < 90) return Iterate();
    if (what < 93) return Expect(runtime_->Drain(), "drain", [] { return true; });
    if (what < 96) return WaitForAll();
    WaitForOldest();
  }

  // What was read ahead is dropped for the sake of the value.
  void Finish() {
    Step();
    Read(0, Field::kMaster);
    Expect(runtime_->Drain(), "drain", [] { return true; });
    WaitForAll();
  }

  void WaitForAll() {
    while (!pending_.empty() && failure_.empty()) WaitForOldest();
  }
  const std::string& failure() const { return failure_; }

 private:
  struct Pending {
    Ticket ticket;
    std::string what;
    std::function<bool()> right;  // whether the result is what the model has
    absl::StatusCode code = absl::StatusCode::kOk;
  };

  uint32_t Tensor() { return static_cast<uint32_t>(dice_.Uniform(0, spec_.tensors.size() - 1)); }
  void Expect(Ticket ticket, std::string what, std::function<bool()> right,
              absl::StatusCode code = absl::StatusCode::kOk) {
    pending_.push_back({ticket, std::move(what), std::move(right), code});
  }

  void WaitForOldest() {
    if (pending_.empty()) return;
    const Pending oldest = std::move(pending_.front());
    pending_.pop_front();
    Judge(oldest);
  }
  void Judge(const Pending& p) {
    absl::Status status = absl::DeadlineExceededError("a ticket was never done");
    for (int i = 0; i < 600; ++i) {
      if (const auto result = runtime_->Wait(p.ticket, std::chrono::milliseconds(100)); result) {
        status = *result;
        break;
      }
    }
    if (!failure_.empty()) return;
    const bool excused = faults_->happened() > 0 && !absl::IsDeadlineExceeded(status) &&
                         !absl::IsInternal(status) && !absl::IsInvalidArgument(status);
    if (excused && !status.ok()) return;
    if (status.code() != p.code) {
      failure_ = fmt::format("{}: {}", p.what, status.ToString());
    } else if (status.ok() && !p.right()) {
      failure_ = fmt::format("{}: wrong values", p.what);
    }
  }

  void Push(uint32_t t) {
    const UnitTypes types = model_.types(t);
    const auto seed = static_cast<int>(dice_.Uniform(0, 1000));
    const auto grad = std::make_shared<std::vector<std::byte>>(
        model_.frozen(t)
            ? ParamsOf(model_.field(t, Field::kMaster), types.grad)
            : testing::MakeGradient(seed, t, model_.Params(t).data(), types.param.floats(),
                                    types.grad, spec_.tensors[t].elements));
    if (TakesGradient(t) == absl::StatusCode::kOk) model_.Push(t, *grad);
    Expect(
        runtime_->PushGrad(TensorIndex(t), *grad), fmt::format("gradient of {}", t),
        [grad] { return true; }, TakesGradient(t));
  }

  // Replaces the gradient, with values of any type.
  void WriteGrad(uint32_t t) {
    constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kBf16, FloatType::kF16};
    const FloatType type = kTypes[dice_.Uniform(0, 2)];
    std::vector<float> values(static_cast<size_t>(spec_.tensors[t].elements));
    const uint64_t salt = dice_.Random() >> 8;
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(Mix(salt + i) % 1000) * 1e-3f - 0.5f;
    const auto data = std::make_shared<std::vector<std::byte>>(ParamsOf(values, type));
    if (TakesGradient(t) == absl::StatusCode::kOk) model_.WriteGrad(t, ValuesOf(*data, type));
    ValueRequest request = Request(t, Field::kGrad, data.get(), type);
    request.write = true;
    Expect(
        runtime_->Access(std::move(request)), fmt::format("writing the gradient of {}", t),
        [data] { return true; }, TakesGradient(t));
  }

  void ClearGrad(uint32_t t) {
    const absl::Status cleared = runtime_->ClearGrad(TensorIndex(t));
    if (cleared.ok()) model_.ClearGrad(t);
    const auto expected =
        model_.frozen(t) ? absl::StatusCode::kFailedPrecondition : absl::StatusCode::kOk;
    if (runtime_->failure().ok() && cleared.code() != expected)
      failure_ = fmt::format("clearing the gradient of {}: {}", t, cleared.ToString());
  }

  absl::StatusCode TakesGradient(uint32_t t) const {
    return model_.frozen(t) ? absl::StatusCode::kFailedPrecondition : IfLoaded(t);
  }

  absl::StatusCode IfLoaded(uint32_t t) const {
    return model_.loaded(t) ? absl::StatusCode::kOk : absl::StatusCode::kFailedPrecondition;
  }

  static ValueRequest Request(uint32_t t, Field field, std::vector<std::byte>* data,
                              ElementType type) {
    return {.tensor = TensorIndex(t),
            .field = field,
            .data = data->data(),
            .type = type,
            .done = nullptr};
  }
  // As what values are passed.
  ElementType TypeOf(uint32_t t) const {
    return model_.types(t).param.is_bytes() ? ElementType::Bytes() : FloatType::kF32;
  }
  std::shared_ptr<std::vector<std::byte>> Room(uint32_t t) const {
    return std::make_shared<std::vector<std::byte>>(
        static_cast<size_t>(spec_.tensors[t].elements * TypeOf(t).size()));
  }
  absl::StatusCode HasField(uint32_t t, Field field) const {
    const bool state = field == Field::kExpAvg || field == Field::kExpAvgSq;
    return model_.frozen(t) && state ? absl::StatusCode::kNotFound : absl::StatusCode::kOk;
  }

  void Read(uint32_t t, Field field) {
    const auto found = Room(t);
    const absl::StatusCode has = HasField(t, field);
    Expect(
        runtime_->Access(Request(t, field, found.get(), TypeOf(t))),
        fmt::format("reading field {} of {}", static_cast<int>(field), t),
        [found, expected = ParamsOf(model_.field(t, field), TypeOf(t))] {
          return *found == expected;
        },
        has != absl::StatusCode::kOk ? has : IfLoaded(t));
  }

  void ReadGrad(uint32_t t) {
    const std::vector<float> expected = model_.has_grad(t) ? model_.grad(t) : std::vector<float>();
    const auto found = Room(t);
    Expect(
        runtime_->Access(Request(t, Field::kGrad, found.get(), TypeOf(t))),
        fmt::format("reading the gradient of {}", t),
        [found, expected = ParamsOf(expected, TypeOf(t))] { return *found == expected; },
        model_.has_grad(t) ? absl::StatusCode::kOk : absl::StatusCode::kNotFound);
  }

  void Write(uint32_t t, Field field) {
    std::vector<float> values(static_cast<size_t>(spec_.tensors[t].elements));
    const uint64_t salt = dice_.Random() >> 8;
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = TypeOf(t).is_bytes() ? static_cast<float>(Mix(salt + i) % 256)
                                       : static_cast<float>(Mix(salt + i) % 1000) * 1e-3f;
    }
    const auto data = std::make_shared<std::vector<std::byte>>(ParamsOf(values, TypeOf(t)));
    if (HasField(t, field) == absl::StatusCode::kOk) model_.Write(t, field, values);
    ValueRequest request = Request(t, field, data.get(), TypeOf(t));
    request.write = true;
    Expect(
        runtime_->Access(std::move(request)),
        fmt::format("writing field {} of {}", static_cast<int>(field), t), [data] { return true; },
        HasField(t, field));
  }

  // Acquires a unit, waits for that alone, looks at its parameters, releases it.
  void Use(UnitIndex unit) {
    absl::StatusCode code = absl::StatusCode::kOk;
    for (TensorIndex t : runtime_->layout().unit(unit).tensors)
      code = std::max(code, IfLoaded(t.value()));
    const Ticket ticket = runtime_->Acquire(unit);
    Judge({ticket, fmt::format("acquiring unit {}", unit.value()),
           [&] { return ParamsAreRight(unit); }, code});
    if (!failure_.empty() || !runtime_->failure().ok() || code != absl::StatusCode::kOk) return;
    if (const absl::Status released = runtime_->Release(unit); !released.ok())
      failure_ = released.ToString();
  }
  bool ParamsAreRight(UnitIndex unit) {
    const absl::StatusOr<DlManagedTensor*> view = runtime_->MakeView(unit);
    if (!view.ok()) return false;
    bool right = true;
    for (TensorIndex t : runtime_->layout().unit(unit).tensors) {
      const std::vector<std::byte> expected = model_.Params(t.value());
      const auto* at = static_cast<const std::byte*>((*view)->dl_tensor.data) +
                       runtime_->layout().tensor(t).offset * model_.types(t.value()).param.size();
      right = right && std::memcmp(at, expected.data(), expected.size()) == 0;
    }
    (*view)->deleter(*view);
    return right;
  }

  void Step() {
    const double clip = dice_.OneIn(2) ? 1.0 : 0.0;
    model_.Step(clip);
    Expect(runtime_->Step({.groups = Groups(), .clip_norm = clip}), "step", [] { return true; });
  }

  void Zero() {
    model_.ZeroGrad();
    runtime_->ZeroGrad();
  }

  void Iterate() {
    if (std::exchange(iterating_, !iterating_)) return runtime_->EndIteration();
    const bool boundary = dice_.OneIn(2);
    runtime_->BeginIteration(boundary ? 1 : 0, boundary);
  }

  const ModelSpec spec_;
  OffloadRuntime* const runtime_;
  const SimFaults* const faults_;
  SimWorld dice_;
  Model model_;
  std::deque<Pending> pending_;
  bool iterating_ = false;
  std::string failure_;
};

// What went wrong with the calls of `seed`; empty if nothing. Every third keeps all in HBM.
std::string CallRandomly(uint64_t seed, const std::function<void(SimFaults*)>& faults) {
  auto [spec, config] = DrawnFrom(seed);
  if (seed % 3 == 0) {
    config.placement.lowest_state_tier = config.highest_state_tier_on_host = Tier::kHbm;
    config.budgets.hbm = MiB(8);
  }
  absl::StatusOr<SimRuntime> sim = MakeSimRuntime(spec, config, {.seed = seed, .faults = faults});
  if (!sim.ok()) return sim.status().ToString();
  RandomCaller caller(&*sim, spec, seed);
  caller.Load(seed % 4 != 0);
  for (int i = 0; i < 120 && caller.failure().empty(); ++i) caller.CallAnything();
  caller.Finish();
  if (!caller.failure().empty()) return caller.failure();
  return testing::Settle(&*sim);
}

TEST(SimOrderTest, CallsTakeEffectInTheirOrder) {
  for (const uint64_t seed : Seeds(150)) ASSERT_EQ(CallRandomly(seed, {}), "") << "seed " << seed;
}

// Whatever is under way when something fails ends too, right or with an error.
TEST(SimOrderTest, EveryCallEndsWhenSomethingFails) {
  for (const uint64_t seed : Seeds(150)) {
    const auto faults = [seed](SimFaults* f) {
      const auto seam = static_cast<SimSeam>(seed % 3);  // reads, writes, copies
      f->Script(seam, SimFault::kError, 20 + seed % 151, SimFaults::Repeat::kOnce);
      f->Draw(SimSeam::kTask, SimFault::kLate, 50);
    };
    ASSERT_EQ(CallRandomly(seed, faults), "") << "seed " << seed;
  }
}

}  // namespace
}  // namespace sluice
