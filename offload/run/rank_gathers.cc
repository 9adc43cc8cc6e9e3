#include "offload/run/rank_gathers.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {
constexpr size_t kGathersMade = 16;  // at once: units that are renewed at a time, but for a burst
}  // namespace

class RankGathers::Gather final : public Event {
 public:
  using Places = std::array<ElementRange, 2>;  // that a rank has

  explicit Gather(RankGathers* owner) : owner_(owner) {
    receive_.reserve(size_t{2} * owner->communicator_->ranks());
    ends_.reserve(owner->communicator_->ranks());
    send_.reserve(2);
    op_.kind = CommKind::kAllGather;
    op_.inbox = owner->context_.inbox;
    op_.event = this;
  }

  // `to`: rank r has what is at place(r) of it, in elements of so many bytes.
  template <typename Place>
  void Prepare(uint64_t tag, std::byte* to, int64_t element, const Place& place) {
    receive_.clear();
    ends_.clear();
    for (uint32_t r = 0; r < owner_->communicator_->ranks(); ++r) {
      for (const ElementRange range : Places(place(Rank(r)))) {
        receive_.emplace_back(to + range.begin * element,
                              static_cast<size_t>(range.size() * element));
      }
      ends_.push_back(static_cast<uint32_t>(receive_.size()));
    }
    const auto own =
        std::span(receive_).subspan(size_t{2} * owner_->communicator_->rank().value(), 2);
    send_.assign(own.begin(), own.end());
    op_.tag = tag;
    op_.send.views = send_;
    op_.receive = {.views = receive_, .ends = ends_};
  }
  void StartOn(Communicator* communicator) { communicator->Enqueue(&op_); }
  void Handle() override { owner_->End(this); }

  UnitIndex unit;
  TensorIndex tensor;
  Done done;  // of a value
  const absl::Status& status() const { return op_.status; }
  TimePoint started() const { return op_.started; }
  TimePoint finished() const { return op_.finished; }

 private:
  RankGathers* const owner_;
  std::vector<ConstMemoryView> send_;
  std::vector<MemoryView> receive_;
  std::vector<uint32_t> ends_;
  CommOp op_;
};

RankGathers::RankGathers(const Context& context, Communicator* communicator, LaunchOrder* order,
                         Communicator* host, Agreement* agreement,
                         std::function<void(UnitIndex)> renewed)
    : context_(context),
      communicator_(communicator),
      order_(order),
      host_(host),
      agreement_(agreement),
      renewed_(std::move(renewed)),
      said_(context.layout->units().size(), 0),
      asked_by_(communicator->ranks(), 0),
      renewed_by_(communicator->ranks(), 0),
      accesses_(communicator->ranks(), 0) {
  track_ = context.trace->AddTrack("parameters among ranks");
  for (size_t i = 0; i < std::min(kGathersMade, context.layout->units().size()); ++i) {
    gathers_.push_back(std::make_unique<Gather>(this));
    free_gathers_.push_back(gathers_.back().get());
  }
}

RankGathers::~RankGathers() = default;

void RankGathers::Renew(UnitIndex unit) {
  ++renewals_;
  ++under_way_;
  agreement_->Say({Topic::kParams, unit.value()});
}

void RankGathers::Complete(TensorIndex tensor, After after, std::byte* data, int64_t element,
                           Done done) {
  values_.push_back({tensor, after, data, element, std::move(done)});
  ++under_way_;
  agreement_->Say({Topic::kValue, 2 * tensor.value() + (after == After::kWrite ? 1 : 0)});
}

void RankGathers::ComeToAccess() {
  ++come_to_;
  agreement_->Say({Topic::kAccess, 0});
}

bool RankGathers::all_at_access() const {
  return std::ranges::all_of(accesses_, [this](uint64_t count) { return count >= come_to_; });
}

void RankGathers::OnSaid(Rank rank, Said said) {
  if (said.topic == Topic::kAccess) {
    ++accesses_[rank.value()];
    return;
  }
  if (said.topic == Topic::kParams) {
    ++renewed_by_[rank.value()];
    return OnParams(UnitIndex(said.index));
  }
  OnValue(rank, said.index);
}

std::string RankGathers::InWords(uint32_t index) const {
  return fmt::format("{} tensor '{}'", index % 2 == 0 ? "reads" : "writes",
                     context_.layout->tensor(TensorIndex(index / 2)).name);
}

std::string RankGathers::MissedBy(Rank rank) const {
  const bool misses = !asked_.empty() && asked_by_[rank.value()] <= values_begun_;
  return misses ? InWords(asked_.front()) : std::string();
}

RankWait RankGathers::Awaited() const {
  const uint32_t here = communicator_->rank().value();
  RankWait wait;
  const auto miss = [&](std::string what, auto&& missing) {
    if (!wait.missing.empty()) return;
    wait.what = std::move(what);
    for (uint32_t r = 0; r < communicator_->ranks(); ++r)
      if (missing(r)) wait.missing.push_back(r);
  };
  if (!asked_.empty() && asked_by_[here] > values_begun_)
    miss(InWords(asked_.front()), [&](uint32_t r) { return asked_by_[r] <= values_begun_; });
  miss("reads or writes a value", [&](uint32_t r) { return accesses_[r] < come_to_; });
  miss("has new parameters",
       [&](uint32_t r) { return renewals_ > 0 && renewed_by_[r] < renewed_by_[here]; });
  return wait;
}

void RankGathers::OnParams(UnitIndex unit) {
  if (++said_[unit.value()] < communicator_->ranks()) return;
  said_[unit.value()] = 0;
  ++renewed_units_;
  if (context_.placement->IsShared(unit.value())) {
    --under_way_;
    --renewals_;
    return renewed_(unit);
  }
  Gather* const gather = Take();
  gather->unit = unit;
  const UnitLayout& layout = context_.layout->unit(unit);
  gather->Prepare(unit.value(), context_.memory->param_home[unit.value()],
                  layout.types.param.size(), [&](Rank r) -> Gather::Places {
                    if (!context_.layout->sharding().params) return {layout.updated.shard(r)};
                    const ElementRange frozen = layout.frozen.shard(r);
                    const int64_t begin = layout.updated_elements;
                    return {layout.updated.shard(r), {frozen.begin + begin, frozen.end + begin}};
                  });
  Launch(gather, HomeInHost(unit));
}

void RankGathers::OnValue(Rank rank, uint32_t index) {
  const uint64_t place = asked_by_[rank.value()]++ - values_begun_;
  if (place == asked_.size()) {
    asked_.push_back(index);
  } else if (asked_[place] != index) {
    return context_.fail(absl::FailedPreconditionError(
        fmt::format("rank {} {} where another {}: with several ranks, all must do so, in the same "
                    "order",
                    rank.value(), InWords(index), InWords(asked_[place]))));
  }
  if (std::ranges::all_of(asked_by_, [this](uint64_t asked) { return asked > values_begun_; }))
    StartValue();
}

void RankGathers::StartValue() {
  ++values_begun_;
  asked_.pop_front();
  Value value = std::move(values_.front());
  values_.pop_front();
  Gather* const gather = Take();
  gather->tensor = value.tensor;
  gather->done = std::move(value.done);
  const TensorLayout& tensor = context_.layout->tensor(value.tensor);
  const UnitLayout& unit = context_.layout->unit(tensor.unit);
  const ElementRange whole{tensor.offset, tensor.offset + tensor.elements};
  std::vector<ElementRange> places(communicator_->ranks());
  unit.ForShards(whole, [&](Rank r, ElementRange part) {
    places[r.value()] = {part.begin - tensor.offset, part.end - tensor.offset};
  });
  constexpr uint64_t kOfValue = uint64_t{1} << 32;
  gather->Prepare(kOfValue + value.tensor.value(), value.data, value.element,
                  [&](Rank r) -> Gather::Places { return {places[r.value()]}; });
  Launch(gather, value.after == After::kRead || value.element == 0 || HomeInHost(tensor.unit));
}

void RankGathers::Launch(Gather* gather, bool in_host) {
  if (in_host && host_ != nullptr) return gather->StartOn(host_);
  order_->Add([this, gather] {
    gather->StartOn(communicator_);
    return true;
  });
}

RankGathers::Gather* RankGathers::Take() {
  if (free_gathers_.empty()) {
    gathers_.push_back(std::make_unique<Gather>(this));
    free_gathers_.push_back(gathers_.back().get());
  }
  Gather* const gather = free_gathers_.back();
  free_gathers_.pop_back();
  return gather;
}

void RankGathers::End(Gather* gather) {
  const absl::Status status = gather->status();
  const Done done = std::exchange(gather->done, nullptr);
  const UnitIndex unit = gather->unit;
  free_gathers_.push_back(gather);
  --under_way_;
  if (done) return done(status);
  context_.trace->Record(track_, "gather unit", unit.value(), gather->started(),
                         gather->finished());
  --renewals_;
  if (!status.ok()) {
    return context_.fail(Annotate(status, fmt::format("gathering the parameters of unit '{}'",
                                                      context_.layout->unit(unit).name)));
  }
  renewed_(unit);
}

void RankGathers::Fail(const absl::Status& status) {
  for (Value& value : std::exchange(values_, {})) {
    --under_way_;
    value.done(status);
  }
}

}  // namespace sluice
