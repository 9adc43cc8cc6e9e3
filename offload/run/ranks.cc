#include "offload/run/ranks.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

template <typename F>
void Ranks::ForCells(Rank rank, F&& f) const {
  if (!context_.layout->sharding().states) return;  // every rank has all
  for (const UnitLayout& unit : context_.layout->units()) {
    unit.updated.ForTensors(unit.updated.shard(rank), [&](size_t i, ElementRange part) {
      const TensorLayout& tensor = context_.layout->tensor(unit.tensors[i]);
      f(tensor.first_cell + part.begin / kCellElements, CellCount(part.size()));
    });
  }
}

// FNV-1a, 32 bits (Fowler, Noll, Vo): the same on every machine.
uint32_t FingerprintOf(const ModelLayout& layout) {
  uint32_t hash = 2166136261;
  const auto byte = [&hash](uint8_t value) { hash = (hash ^ value) * 16777619; };
  const auto number = [&](int64_t value) {
    for (int i = 0; i < 64; i += 8) byte(static_cast<uint8_t>(value >> i));
  };
  const auto text = [&](const std::string& value) {
    number(static_cast<int64_t>(value.size()));
    for (const char c : value) byte(static_cast<uint8_t>(c));
  };
  number(layout.sharding().ranks);
  number(layout.sharding().states ? 1 : 0);
  number(layout.sharding().params ? 1 : 0);
  text(layout.format()->name());
  for (const UnitLayout& unit : layout.units()) {
    text(unit.name);
    text(unit.types.param.name());
    text(Name(unit.types.grad));
  }
  for (const TensorLayout& tensor : layout.tensors()) {
    text(tensor.name);
    number(tensor.elements);
    number(tensor.unit.value());
    number(tensor.group);
    number(static_cast<int64_t>(tensor.keep));
  }
  return hash;
}

Ranks::Ranks(const Context& context, RankLinks links, Gradients* gradients, const Updater* updater,
             std::function<const std::vector<UnitIndex>*()> acquisitions,
             std::function<void(UnitIndex)> renewed)
    : context_(context),
      links_(std::move(links)),
      of_gradients_(gradients),
      fingerprint_(FingerprintOf(*context.layout)),
      agreement_(links_.agreement.get(), context.clock, context.inbox, context.metrics, this),
      exchange_(context, links_.gradients.get(), &agreement_, gradients, updater,
                std::move(acquisitions)),
      gathers_(context, links_.gathers.get(), &order_, &agreement_, std::move(renewed)),
      units_(context, links_.gathers.get(), &order_, &agreement_),
      present_(context.layout->tensors().size(), 0),
      ends_(EndsOfOneEach(links_.agreement->ranks())) {
  const size_t words = (present_.size() + sizeof(double) - 1) / sizeof(double);
  for (uint32_t r = 0; r < ranks(); ++r) {
    size_t cells = words;
    ForCells(Rank(r), [&](int64_t, int64_t count) { cells += static_cast<size_t>(count); });
    messages_.emplace_back(cells);
    receive_.emplace_back(std::as_writable_bytes(std::span(messages_.back())));
  }
  send_ = receive_[rank().value()];
  op_.kind = CommKind::kAllGather;
  op_.send.views = std::span(&send_, 1);
  op_.receive = {.views = receive_, .ends = ends_};
  constexpr uint64_t kOfSums = uint64_t{1} << 32;
  op_.tag = kOfSums;
  op_.inbox = context.inbox;
  op_.event = this;
  agreement_.Say({Topic::kModel, fingerprint_});
}

Ranks::~Ranks() { (void)Close(); }

void Ranks::Poll() {
  exchange_.CollectMore();
  units_.Poll();
  agreement_.Poll();
}

void Ranks::OnSaid(Rank rank, Said said) {
  switch (said.topic) {
    case Topic::kModel:
      if (said.index == fingerprint_) return;
      return context_.fail(absl::FailedPreconditionError(fmt::format(
          "rank {} has another model, stage or configuration than rank {}: all ranks must have "
          "the same units, tensors, types and ZeRO stage",
          rank.value(), this->rank().value())));
    case Topic::kGradients:
    case Topic::kNothing:
    case Topic::kWindowEnd:
    case Topic::kStep:
      return exchange_.OnSaid(rank, said);
    case Topic::kWrites:
    case Topic::kParams:
    case Topic::kValue:
    case Topic::kAccess:
      return gathers_.OnSaid(rank, said);
    case Topic::kFetch:
    case Topic::kUrgent:
    case Topic::kUnwanted:
      return units_.OnSaid(rank, said);
  }
}

// A rank that leaves is missed only when something is wanted of it.
void Ranks::OnDisagreement(const absl::Status& status, bool wanted) {
  if (wanted || !idle()) context_.fail(status);
}

void Ranks::MeetForStep() {
  sums_exchanged_ = false;
  exchange_.EndWindow(Topic::kStep);
}

// On the communicator of gradients, which carries nothing else between a step's last gradient and
// the next one's first.
void Ranks::ExchangeSums() {
  const std::span<double> cells = of_gradients_->cells();
  std::vector<double>& mine = messages_[rank().value()];
  size_t at = 0;
  ForCells(rank(), [&](int64_t first, int64_t count) {
    std::copy_n(cells.begin() + first, count, mine.begin() + static_cast<ptrdiff_t>(at));
    at += static_cast<size_t>(count);
  });
  auto* const given = reinterpret_cast<uint8_t*>(mine.data() + at);
  for (uint32_t t = 0; t < present_.size(); ++t) given[t] = exchange_.given(TensorIndex(t)) ? 1 : 0;
  exchanging_ = true;
  links_.gradients->Enqueue(&op_);
}

void Ranks::Handle() {
  exchanging_ = false;
  if (!op_.status.ok())
    return context_.fail(Annotate(op_.status, "the norm of the gradients of all ranks"));
  const std::span<double> cells = of_gradients_->cells();
  present_.assign(present_.size(), 0);
  for (uint32_t r = 0; r < ranks(); ++r) {
    const std::vector<double>& message = messages_[r];
    size_t at = 0;
    ForCells(Rank(r), [&](int64_t first, int64_t count) {
      std::copy_n(message.begin() + static_cast<ptrdiff_t>(at), count, cells.begin() + first);
      at += static_cast<size_t>(count);
    });
    const auto* const given = reinterpret_cast<const uint8_t*>(message.data() + at);
    for (size_t t = 0; t < present_.size(); ++t) present_[t] |= given[t];
  }
  sums_exchanged_ = true;
}

void Ranks::StepBegun() {
  sums_exchanged_ = false;
  exchange_.StepBegun();
}

bool Ranks::idle() const {
  return exchange_.idle() && gathers_.idle() && units_.idle() && !exchanging_;
}

bool Ranks::settled() const {
  return links_.agreement->pending() + links_.gradients->pending() + links_.gathers->pending() == 0;
}

void Ranks::Fail(const absl::Status& status) {
  agreement_.Stop();
  exchange_.Fail(status);
  gathers_.Fail(status);
  order_.Stop();
  links_.agreement->Abort(status);
  links_.gradients->Abort(status);
  links_.gathers->Abort(status);
}

absl::Status Ranks::Close() {
  agreement_.Stop();
  absl::Status first;
  for (Communicator* const link :
       {links_.gathers.get(), links_.gradients.get(), links_.agreement.get()}) {
    const absl::Status status = link->Close();
    if (first.ok()) first = status;
  }
  return first;
}

}  // namespace sluice
