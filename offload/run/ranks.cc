#include "offload/run/ranks.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "fmt/ranges.h"

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

namespace {

constexpr Nanos kLetEnd = std::chrono::seconds(1);  // at the end, what all have begun
// A round of agreement that takes longer waits for a rank that says nothing.
constexpr Nanos kRoundMax = std::chrono::seconds(1);

// FNV-1a, 32 bits (Fowler, Noll, Vo): the same on every machine.
class Hash {
 public:
  void Number(int64_t value) {
    for (int i = 0; i < 64; i += 8) Byte(static_cast<uint8_t>(value >> i));
  }
  void Text(std::string_view value) {
    Number(static_cast<int64_t>(value.size()));
    for (const char c : value) Byte(static_cast<uint8_t>(c));
  }
  uint32_t value() const { return hash_; }

 private:
  void Byte(uint8_t value) { hash_ = (hash_ ^ value) * 16777619; }
  uint32_t hash_ = 2166136261;
};

template <typename Things, typename F>
uint32_t HashOf(const Things& things, F&& add) {
  Hash hash;
  for (const auto& thing : things) add(&hash, thing);
  return hash.value();
}

}  // namespace

std::vector<RankLinks::Named> RankLinks::all() const {
  std::vector<Named> links{{"agreement", agreement.get()},
                           {"gradients", gradients.get()},
                           {"gathers", gathers.get()},
                           {"values", values.get()}};
  std::erase_if(links, [](const Named& named) { return named.link == nullptr; });
  return links;
}

void RankLinks::GiveUp(const absl::Status& why) {
  for (const Named& named : all()) {
    named.link->Abort(
        Annotate(why, fmt::format("rank {} can't begin", named.link->rank().value())));
  }
}

std::vector<std::pair<std::string, uint32_t>> FingerprintsOf(const ModelLayout& layout,
                                                             const Placement& placement,
                                                             const UpdateRule& rule) {
  const auto of_text = [](std::string_view text) {
    Hash hash;
    hash.Text(text);
    return hash.value();
  };
  const auto of_units = [&](auto add) { return HashOf(layout.units(), add); };
  const auto of_tensors = [&](auto add) { return HashOf(layout.tensors(), add); };
  const Sharding& sharding = layout.sharding();
  // Units that are whole everywhere are gathered where they live.
  const bool may_differ = placement.hbm_in_place || sharding.params;
  const std::span<const Tier> homes = may_differ ? std::span<const Tier>() : placement.param_home;
  return {
      {"number of ranks", sharding.ranks},
      {"ZeRO stage", (sharding.states ? 1u : 0u) + (sharding.params ? 2u : 0u)},
      {"update rule", of_text(rule.name())},
      {"format of states", of_text(layout.format()->name())},
      {"number of units", static_cast<uint32_t>(layout.units().size())},
      {"number of tensors", static_cast<uint32_t>(layout.tensors().size())},
      {"names of units", of_units([](Hash* h, const UnitLayout& u) { h->Text(u.name); })},
      {"types of parameters",
       of_units([](Hash* h, const UnitLayout& u) { h->Text(u.types.param.name()); })},
      {"types of gradients",
       of_units([](Hash* h, const UnitLayout& u) { h->Text(Name(u.types.grad)); })},
      {"names of tensors", of_tensors([](Hash* h, const TensorLayout& t) { h->Text(t.name); })},
      {"sizes of tensors",
       of_tensors([](Hash* h, const TensorLayout& t) { h->Number(t.elements); })},
      {"tensors of units",
       of_tensors([](Hash* h, const TensorLayout& t) { h->Number(t.unit.value()); })},
      {"parameter groups", of_tensors([](Hash* h, const TensorLayout& t) { h->Number(t.group); })},
      {"frozen tensors",
       of_tensors([](Hash* h, const TensorLayout& t) { h->Number(static_cast<int64_t>(t.keep)); })},
      {"threshold of what stays in HBM",
       HashOf(placement.shared, [](Hash* h, bool shared) { h->Number(shared ? 1 : 0); })},
      {"HBM budget, and so another set of units there,",
       HashOf(homes, [](Hash* h, Tier tier) { h->Number(static_cast<int64_t>(tier)); })},
  };
}

Ranks::Ranks(const Context& context, RankLinks links, Gradients* gradients, GradExchange::Asks asks,
             std::function<void(UnitIndex)> renewed, Nanos patience)
    : context_(context),
      patience_(patience),
      links_(std::move(links)),
      of_gradients_(gradients),
      fingerprints_(FingerprintsOf(*context.layout, *context.placement, context.update->rule())),
      compared_(links_.agreement->ranks(), 0),
      agreement_(links_.agreement.get(), context.clock, context.inbox, context.metrics, this),
      exchange_(context, links_.gradients.get(), &agreement_, gradients, std::move(asks)),
      gathers_(context, links_.gathers.get(), &order_, HostLink(), &agreement_, std::move(renewed)),
      units_(context, links_.gathers.get(), &order_, &agreement_),
      votes_(&agreement_, links_.agreement->rank(), links_.agreement->ranks()),
      present_(context.layout->tensors().size(), 0),
      ends_(EndsOfOneEach(links_.agreement->ranks())),
      since_(context.clock->Now()) {
  SLUICE_CHECK(context.placement->hbm_in_place || links_.values != nullptr);
  for (uint32_t r = 0; r < ranks(); ++r) {
    size_t cells = 1 + WordsOfFlags();
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
  for (const auto& [what, value] : fingerprints_) agreement_.Say({Topic::kModel, value});
}

Ranks::~Ranks() { (void)Close(); }

void Ranks::Poll(bool caller_waits) {
  exchange_.CollectMore();
  units_.Poll();
  agreement_.Poll();
  CheckPatience(caller_waits);
}

// Others say what they are ready for, but one of them never comes to what is waited for here. Where
// they say nothing, a round does not end, and its deadline knows who keeps it.
void Ranks::CheckPatience(bool caller_waits) {
  const TimePoint now = context_.clock->Now();
  const uint64_t progress = exchange_.progress() + gathers_.progress() + votes_.progress();
  const bool awaits = exchange_.awaits(caller_waits) || gathers_.awaits() || votes_.awaits();
  if (!awaits || std::exchange(progress_, progress) != progress) since_ = now;
  if (now - since_ < patience_ || now - agreement_.began() > kRoundMax) return;
  since_ = now;
  RankWait wait = exchange_.Awaited();
  if (wait.missing.empty()) wait = gathers_.Awaited();
  if (wait.missing.empty()) wait = votes_.Awaited();
  if (wait.missing.empty()) return;
  context_.fail(absl::DeadlineExceededError(fmt::format(
      "rank {} {}, and has waited {} s for rank{} {} to do so too: as long as rank_timeout says",
      rank().value(), wait.what, std::chrono::duration<double>(patience_).count(),
      wait.missing.size() > 1 ? "s" : "", fmt::join(wait.missing, ", "))));
}

void Ranks::OnSaid(Rank rank, Said said) {
  switch (said.topic) {
    case Topic::kModel:
      return OnFingerprint(rank, said.index);
    case Topic::kGradients:
    case Topic::kNothing:
    case Topic::kWindowEnd:
      return exchange_.OnSaid(rank, said);
    case Topic::kStep:
    case Topic::kClear:
    case Topic::kGradient:
      CheckForDeadlock(rank, said);
      return exchange_.OnSaid(rank, said);
    case Topic::kParams:
    case Topic::kAccess:
      return gathers_.OnSaid(rank, said);
    case Topic::kFetch:
    case Topic::kUrgent:
    case Topic::kUnwanted:
      return units_.OnSaid(rank, said);
    case Topic::kValue:
      gathers_.OnSaid(rank, said);
      for (uint32_t r = 0; r < ranks(); ++r) {
        const Said* const meeting = exchange_.MeetingOf(Rank(r));
        if (meeting != nullptr) CheckForDeadlock(Rank(r), *meeting);
      }
      return;
    case Topic::kVote:
    case Topic::kGoesOn:
      return votes_.OnSaid(rank, said);
  }
}

// Each is compared in its turn: the first that differs is named.
void Ranks::OnFingerprint(Rank rank, uint32_t value) {
  const auto& [what, own] = fingerprints_[compared_[rank.value()]++];
  if (value == own) return;
  const auto in_words = [&what = what](uint32_t v) {
    return what.starts_with("number") ? fmt::format(" ({})", v) : std::string();
  };
  context_.fail(absl::FailedPreconditionError(fmt::format(
      "rank {} has another {}{} than rank {}{}: all ranks must have the same units, tensors, "
      "types, groups, update rule and ZeRO stage, and, on GPUs, below stage 3, the same budget of "
      "HBM",
      rank.value(), what, in_words(value), this->rank().value(), in_words(own))));
}

// A rank at a meeting has asked for nothing that is not done, and asks for nothing before the
// others come there; they can't while they wait for what it was to ask for too.
void Ranks::CheckForDeadlock(Rank rank, Said said) {
  const std::string missed = gathers_.MissedBy(rank);
  if (missed.empty()) return;
  context_.fail(absl::FailedPreconditionError(
      fmt::format("rank {} {} where another rank {}: with several ranks, all must do so, in the "
                  "same order",
                  rank.value(), exchange_.InWords(said), missed)));
}

// A rank that leaves is missed only when something is wanted of it.
void Ranks::OnDisagreement(const absl::Status& status) {
  if (!idle()) context_.fail(status);
}

// On a communicator that carries nothing else between a step's last gradient and the next one's
// first: all that ranks have agreed to gather has ended on each before it came to the step.
void Ranks::ExchangeSums(uint64_t step, const std::function<bool(UnitIndex)>& acquired) {
  const std::span<double> cells = of_gradients_->cells();
  std::vector<double>& mine = messages_[rank().value()];
  size_t at = 0;
  ForCells(rank(), [&](int64_t first, int64_t count) {
    std::copy_n(cells.begin() + first, count, mine.begin() + static_cast<ptrdiff_t>(at));
    at += static_cast<size_t>(count);
  });
  std::memcpy(mine.data() + at, &step, sizeof(step));
  auto* const flags = reinterpret_cast<uint8_t*>(mine.data() + at + 1);
  for (uint32_t t = 0; t < present_.size(); ++t) {
    const bool given = exchange_.given(TensorIndex(t));
    const bool held = acquired(context_.layout->tensor(TensorIndex(t)).unit);
    flags[t] = static_cast<uint8_t>((given ? kGiven : 0) | (held ? kAcquired : 0));
  }
  exchanging_ = true;
  (HostLink() != nullptr ? HostLink() : links_.gradients.get())->Enqueue(&op_);
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
    for (size_t t = 0; t < present_.size(); ++t) present_[t] |= FlagsIn(r)[t];
  }
  sums_exchanged_ = true;
}

absl::Status Ranks::CheckStep() const {
  for (uint32_t r = 1; r < ranks(); ++r) {
    if (std::bit_cast<uint64_t>(*StepIn(r)) == std::bit_cast<uint64_t>(*StepIn(0))) continue;
    return absl::FailedPreconditionError(
        fmt::format("rank {} takes the step with other hyperparameters, clip norm, loss scale or "
                    "step counts than rank 0",
                    r));
  }
  for (uint32_t t = 0; t < present_.size(); ++t) {
    if (present_[t] != (kGiven | kAcquired)) continue;
    uint32_t rank = 0;
    while ((FlagsIn(rank)[t] & kAcquired) == 0) ++rank;
    const UnitIndex unit = context_.layout->tensor(TensorIndex(t)).unit;
    return absl::FailedPreconditionError(
        fmt::format("unit '{}' is acquired on rank {}: release every unit before the step",
                    context_.layout->unit(unit).name, rank));
  }
  return absl::OkStatus();
}

void Ranks::MeetingOver() {
  sums_exchanged_ = false;
  exchange_.MeetingOver();
}

bool Ranks::idle() const {
  return exchange_.idle() && gathers_.idle() && units_.idle() && votes_.idle() && !exchanging_;
}

void Ranks::Fail(const absl::Status& status, const absl::Status& why) {
  agreement_.Stop();
  exchange_.Fail(status);
  gathers_.Fail(status);
  votes_.Drop();
  order_.Stop();
  for (const RankLinks::Named& named : links_.all()) named.link->Abort(why);
}

absl::Status Ranks::Close() {
  agreement_.Stop();
  std::vector<RankLinks::Named> links = links_.all();
  std::ranges::reverse(links);  // agreement is the last: others hear there what went wrong
  // What is left of it for the others is next to nothing, if the first took it all.
  const Deadline deadline = context_.clock->Now() + kLetEnd;
  for (const auto& [name, link] : links)
    link->LetEnd(std::max(Nanos(0), deadline - context_.clock->Now()));
  absl::Status first;
  for (const auto& [name, link] : links) {
    const absl::Status status = link->Close();
    if (first.ok()) first = status;
    memory_lost_ |= link->memory_lost();
  }
  return first;
}

}  // namespace sluice
