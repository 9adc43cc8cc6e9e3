#include "offload/run/rank_gathers.h"

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

class RankGathers::Gather final : public Event {
 public:
  explicit Gather(RankGathers* owner)
      : owner_(owner),
        receive_(owner->communicator_->ranks()),
        ends_(EndsOfOneEach(owner->communicator_->ranks())) {
    op_.kind = CommKind::kAllGather;
    op_.send.views = std::span(&send_, 1);
    op_.receive = {.views = receive_, .ends = ends_};
    op_.inbox = owner->context_.inbox;
    op_.event = this;
  }

  // `to`: rank r has what is at place(r) of it, in elements of so many bytes.
  template <typename Place>
  void Start(uint64_t tag, std::byte* to, int64_t element, const Place& place) {
    for (uint32_t r = 0; r < receive_.size(); ++r) {
      const ElementRange range = place(Rank(r));
      receive_[r] = {to + range.begin * element, static_cast<size_t>(range.size() * element)};
    }
    op_.tag = tag;
    send_ = receive_[owner_->communicator_->rank().value()];
    owner_->communicator_->Enqueue(&op_);
  }
  void Handle() override { owner_->End(this); }

  UnitIndex unit;
  TensorIndex tensor;
  Done done;  // of a value
  const absl::Status& status() const { return op_.status; }
  TimePoint started() const { return op_.started; }
  TimePoint finished() const { return op_.finished; }

 private:
  RankGathers* const owner_;
  ConstMemoryView send_;
  std::vector<MemoryView> receive_;
  const std::vector<uint32_t> ends_;
  CommOp op_;
};

RankGathers::RankGathers(const Context& context, Communicator* communicator, Agreement* agreement,
                         std::function<void(UnitIndex)> renewed)
    : context_(context),
      communicator_(communicator),
      agreement_(agreement),
      renewed_(std::move(renewed)),
      said_(context.layout->units().size(), 0),
      asked_by_(communicator->ranks(), 0) {
  track_ = context.trace->AddTrack("parameters among ranks");
}

RankGathers::~RankGathers() = default;

void RankGathers::Renew(UnitIndex unit) {
  ++renewals_;
  ++under_way_;
  agreement_->Say({Topic::kParams, unit.value()});
}

void RankGathers::Complete(TensorIndex tensor, After after, std::byte* data, int64_t element,
                           Done done) {
  values_.push_back({tensor, data, element, std::move(done)});
  ++under_way_;
  agreement_->Say({Topic::kValue, 2 * tensor.value() + (after == After::kWrite ? 1 : 0)});
}

void RankGathers::OnSaid(Rank rank, Said said) {
  if (said.topic == Topic::kParams) return OnParams(UnitIndex(said.index));
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

void RankGathers::OnParams(UnitIndex unit) {
  if (++said_[unit.value()] < communicator_->ranks()) return;
  said_[unit.value()] = 0;
  Gather* const gather = Take();
  gather->unit = unit;
  const UnitLayout& layout = context_.layout->unit(unit);
  gather->Start(unit.value(), context_.memory->param_home[unit.value()], layout.types.param.size(),
                [&](Rank r) { return layout.updated.shard(r); });
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
  gather->Start(kOfValue + value.tensor.value(), value.data, value.element,
                [&](Rank r) { return places[r.value()]; });
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
