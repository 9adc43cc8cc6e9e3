#include "offload/plan/zero_need.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <tuple>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

// "12P", "B*g", "2P*g/N", "4L*(N-1)/N".
std::string Named(ZeroOf of, const std::string& factor) {
  switch (of) {
    case ZeroOf::kAll:
      return factor + "P";
    case ZeroOf::kRank:
      return factor + "P/N";
    case ZeroOf::kHost:
      return factor + "P*g/N";
    case ZeroOf::kAllEachRank:
      return factor + "P*g";
    case ZeroOf::kTwoUnits:
      return factor + "T";
    case ZeroOf::kLargest:
      return factor + "L";
    case ZeroOf::kLargestRank:
      return factor + "L/N";
    case ZeroOf::kLargestRest:
      return factor + "L*(N-1)/N";
    case ZeroOf::kBuffers:
      return "B*g";
    case ZeroOf::kRooms:
      return "(B+E)*g";
  }
  return "";
}

// The figures of one way on one rank and its host, term by term.
class Reckoner {
 public:
  Reckoner(const ZeroModel& model, const ZeroWay& way, int64_t rank, Bytes buffers)
      : model_(model), way_(way), rank_(rank), host_first_(rank - rank % model.gpus_per_host) {
    param_ = Bytes(model.types.param.size() * kCellElements);
    grad_ = Bytes(SizeOf(model.types.grad) * kCellElements);
    // As ChunkLayout::copy_type has it: what is on the tiers keeps fp32 masters whole.
    std::optional<FloatType> copy = model.types.param.floats();
    if (copy == FloatType::kF32) copy.reset();
    state_ = model.format->bytes(kCellElements, copy);
    need_.way = way;
    need_.buffers = buffers;
    need_.exchange_tier = model.exchange_tier;
  }

  ZeroNeed Run() {
    const bool many = model_.gpus > 1;
    const bool states_leave = way_.states != Tier::kHbm;
    const bool params_leave = way_.params != Tier::kHbm;
    // On the GPU, in the order in which people say it: parameters, gradients, states.
    if (!params_leave) Add(&need_.gpu_kept, way_.stage >= 3 ? ZeroOf::kRank : ZeroOf::kAll, param_);
    if (!states_leave) {
      Add(&need_.gpu_kept, way_.stage >= 2 ? ZeroOf::kRank : ZeroOf::kAll, grad_);
      Add(&need_.gpu_kept, way_.stage >= 1 ? ZeroOf::kRank : ZeroOf::kAll, state_);
    }
    if (way_.stage >= 3 && (many || params_leave))
      Add(&need_.gpu_moving, ZeroOf::kTwoUnits, param_);
    if (states_leave || (way_.stage >= 2 && many)) Add(&need_.gpu_moving, ZeroOf::kTwoUnits, grad_);

    if (many) AddExchange(params_leave);

    if (way_.params == Tier::kPinned) Add(&need_.ram, ZeroOf::kAll, param_);
    if (way_.params == Tier::kNvme) Add(&need_.nvme, ZeroOf::kHost, param_);
    const ZeroOf grads_of = way_.stage >= 2 ? ZeroOf::kHost : ZeroOf::kAllEachRank;
    const ZeroOf states_of = way_.stage >= 1 ? ZeroOf::kHost : ZeroOf::kAllEachRank;
    need_.ram_least = need_.ram;
    if (states_leave) Add(&need_.ram, grads_of, grad_);
    if (way_.states == Tier::kPinned) Add(&need_.ram, states_of, state_);
    if (way_.states == Tier::kNvme) Add(&need_.nvme, states_of, state_);
    need_.kept_in_ram = need_.ram.sum();
    need_.nvme_most = need_.nvme;
    if (way_.states == Tier::kNvme) {
      Add(&need_.nvme_most, grads_of, grad_);
    } else {
      need_.ram_least = need_.ram;
    }
    const bool exchange_in_ram = many && model_.exchange_tier != Tier::kHbm;
    const Bytes rooms = need_.buffers + (exchange_in_ram ? need_.exchange.sum() : Bytes(0));
    for (ZeroFigure* ram : {&need_.ram, &need_.ram_least}) {
      ram->terms.push_back({.of = exchange_in_ram ? ZeroOf::kRooms : ZeroOf::kBuffers,
                            .cell = Bytes(0),
                            .bytes = rooms * HostRanks()});
    }
    return std::move(need_);
  }

 private:
  // Shards are sent from HBM alone, or from RAM where that is in place (Placement::SentFromHome).
  void AddExchange(bool params_leave) {
    const bool in_ram = model_.exchange_tier != Tier::kHbm;
    Add(&need_.exchange, ZeroOf::kLargest, grad_ * kStagingBuffers);
    Add(&need_.exchange, ZeroOf::kLargestRest, grad_ * kExchanges);
    if (params_leave && (way_.params == Tier::kNvme || !in_ram))
      Add(&need_.exchange, ZeroOf::kLargestRank, param_);
  }

  int64_t HostRanks() const { return std::min(model_.gpus_per_host, model_.gpus - host_first_); }

  int64_t HostElements() const {
    const int64_t ranks = HostRanks();
    const int64_t more = model_.parameters() % model_.gpus - host_first_;
    return model_.parameters() / model_.gpus * ranks + std::clamp<int64_t>(more, 0, ranks);
  }

  void Add(ZeroFigure* figure, ZeroOf of, Bytes cell) const {
    const auto bytes_of = [cell](int64_t elements) {  // elements * cell <= 2^44 * 2^17
      return Bytes((elements * cell.value() + kCellElements - 1) / kCellElements);
    };
    Bytes bytes;
    switch (of) {
      case ZeroOf::kAll:
        bytes = bytes_of(model_.parameters());
        break;
      case ZeroOf::kRank:
        bytes = bytes_of(model_.share(rank_));
        break;
      case ZeroOf::kHost:
        bytes = bytes_of(HostElements());
        break;
      case ZeroOf::kAllEachRank:
        bytes = bytes_of(model_.parameters()) * HostRanks();
        break;
      case ZeroOf::kTwoUnits:
        bytes = bytes_of(model_.two_units());
        break;
      case ZeroOf::kLargest:
        bytes = bytes_of(model_.largest_unit());
        break;
      case ZeroOf::kLargestRank:
        bytes = bytes_of((model_.largest_unit() + model_.gpus - 1) / model_.gpus);
        break;
      case ZeroOf::kLargestRest:
        bytes = bytes_of(model_.largest_unit() - model_.largest_unit() / model_.gpus);
        break;
      case ZeroOf::kBuffers:
      case ZeroOf::kRooms:
        break;
    }
    figure->terms.push_back({.of = of, .cell = cell, .bytes = bytes});
  }

  const ZeroModel& model_;
  const ZeroWay& way_;
  const int64_t rank_;
  const int64_t host_first_;    // of the host's ranks
  Bytes param_, grad_, state_;  // of a cell
  ZeroNeed need_;
};

// What a rank's placement moves things through, at least, and the sums of squares beside it.
// `ranks` have one part each of every unit.
absl::StatusOr<Bytes> BuffersOf(const ZeroModel& model, int64_t ranks, Tier states) {
  ModelSpec spec;
  int64_t parameters = 0;
  for (const int64_t elements : model.units) {
    const auto unit = static_cast<uint32_t>(spec.units.size());
    const int64_t part = (elements + ranks - 1) / ranks;
    spec.units.push_back({.name = fmt::format("unit{}", unit)});
    spec.tensors.push_back(
        {.name = fmt::format("part{}", unit), .unit = UnitIndex(unit), .elements = part});
    parameters += part;
  }
  SLUICE_ASSIGN_OR_RETURN(
      const ModelLayout layout,
      ModelLayout::Make(spec, model.chunk_elements(parameters, states), model.types, model.format));
  // Where states leave, HBM has room for parameters alone: what leaves is all of it.
  Bytes hbm = kNoLimit;
  if (states != Tier::kHbm) {
    hbm = Bytes(0);
    for (const UnitLayout& unit : layout.units())
      hbm += RoundUp(unit.param_bytes(), kSlotAlignment);
  }
  SLUICE_ASSIGN_OR_RETURN(
      const Placement placement,
      MakePlacement(layout, {hbm, kNoLimit, kNoLimit},
                    {.lowest_state_tier = states, .highest_state_tier = Tier::kHbm}));
  return placement.least_pinned.buffers + placement.sums;
}

// How much leaves HBM, the least first: by the farthest tier that something goes to, then by how
// much is there, states and gradients being more than parameters.
int Distance(const ZeroWay& way) {
  const auto states = static_cast<int>(way.states);
  const auto params = static_cast<int>(way.params);
  const int farthest = std::max(states, params);
  return 100 * farthest + (states == farthest ? 10 : 0) + (params == farthest ? 1 : 0) +
         (states + params > farthest ? 2 : 0);
}

}  // namespace

std::vector<ZeroWay> ZeroWays() {
  constexpr std::array kTiers = {Tier::kHbm, Tier::kPinned, Tier::kNvme};
  std::vector<ZeroWay> ways;
  for (int stage = 0; stage < kZeroStages; ++stage) {
    for (const Tier states : kTiers) {
      for (const Tier params : kTiers) {
        if (params != Tier::kHbm && stage < 3) continue;
        ways.push_back({.stage = stage, .states = states, .params = params});
      }
    }
  }
  return ways;
}

int64_t ZeroModel::parameters() const {
  return std::accumulate(units.begin(), units.end(), int64_t{0});
}

int64_t ZeroModel::two_units() const {
  std::array<int64_t, 2> largest = {0, 0};
  for (const int64_t unit : units) {
    if (unit > largest[0]) {
      largest = {unit, largest[0]};
    } else {
      largest[1] = std::max(largest[1], unit);
    }
  }
  return largest[0] + largest[1];
}

int64_t ZeroModel::largest_unit() const { return *std::ranges::max_element(units); }

int64_t ZeroModel::share(int64_t rank) const {
  return parameters() / gpus + (rank < parameters() % gpus ? 1 : 0);
}

Bytes ZeroFigure::sum() const {
  Bytes sum;
  for (const ZeroTerm& term : terms) sum += term.bytes;
  return sum;
}

std::string ZeroFigure::formula() const {
  std::string text;
  for (size_t i = 0; i < terms.size();) {
    std::string factor;
    size_t j = i;
    for (; j < terms.size() && terms[j].of == terms[i].of; ++j) {
      const double each = static_cast<double>(terms[j].cell.value()) / kCellElements;
      factor += fmt::format("{}{:g}", j > i ? "+" : "", each);
    }
    text += (i > 0 ? " + " : "") + Named(terms[i].of, j > i + 1 ? "(" + factor + ")" : factor);
    i = j;
  }
  return text.empty() ? "0" : text;
}

absl::StatusOr<std::vector<ZeroNeed>> ZeroNeedsOf(const ZeroModel& model, int64_t rank) {
  SLUICE_CHECK(!model.units.empty() && model.parameters() <= kElementsMax);
  SLUICE_CHECK(model.gpus >= 1 && model.gpus <= kGpusMax);
  SLUICE_CHECK(model.gpus_per_host >= 1 && model.gpus_per_host <= kGpusPerHostMax);
  SLUICE_CHECK(rank >= 0 && rank < model.gpus);
  std::array<std::array<std::optional<Bytes>, 3>, 2> buffers;  // by partitioned, tier of states
  std::vector<ZeroNeed> needs;
  for (const ZeroWay& way : ZeroWays()) {
    const bool parted = way.stage >= 1;
    std::optional<Bytes>& known = buffers[parted ? 1 : 0][static_cast<size_t>(way.states)];
    if (!known) {
      SLUICE_ASSIGN_OR_RETURN(known, BuffersOf(model, parted ? model.gpus : 1, way.states));
    }
    needs.push_back(Reckoner(model, way, rank, *known).Run());
  }
  return needs;
}

ZeroVerdict JudgeZero(const ZeroNeed& need, const ZeroMachine& machine) {
  const auto holds = [](const std::optional<Bytes>& there, Bytes needed) {
    return !there || needed <= *there;
  };
  if (!holds(machine.hbm, need.gpu())) return {ZeroFit::kTooLarge, Tier::kHbm};
  const bool spills = !holds(machine.ram, need.ram.sum());
  if (!holds(machine.ram, need.ram_least.sum())) return {ZeroFit::kTooLarge, Tier::kPinned};
  const Bytes nvme = spills ? need.nvme_most.sum() : need.nvme.sum();
  if (!holds(machine.nvme, nvme)) return {ZeroFit::kTooLarge, Tier::kNvme};
  if (!machine.hbm) return {ZeroFit::kUnknown, Tier::kHbm};
  if (!machine.ram && need.kept_in_ram > Bytes(0)) return {ZeroFit::kUnknown, Tier::kPinned};
  if (!machine.nvme && nvme > Bytes(0)) return {ZeroFit::kUnknown, Tier::kNvme};
  const Bytes headroom = Bytes(machine.hbm->value() / 100 * machine.headroom_percent);
  const bool fits = *machine.hbm - need.gpu() >= headroom;
  return {fits ? ZeroFit::kFits : ZeroFit::kTight, Tier::kHbm, spills};
}

std::optional<size_t> RecommendZero(std::span<const ZeroNeed> needs, const ZeroMachine& machine) {
  // Smaller is better.
  const auto key = [](const ZeroNeed& need, ZeroFit fit) {
    if (fit == ZeroFit::kTight) return std::tuple(1, need.gpu(), Bytes(0), Bytes(0), 0);
    return std::tuple(0, Bytes(Distance(need.way)), need.nvme.sum(), need.kept_in_ram,
                      need.way.stage);
  };
  std::optional<size_t> best;
  for (size_t i = 0; i < needs.size(); ++i) {
    const ZeroFit fit = JudgeZero(needs[i], machine).fit;
    if (fit != ZeroFit::kFits && fit != ZeroFit::kTight) continue;
    if (!best || key(needs[i], fit) < key(needs[*best], JudgeZero(needs[*best], machine).fit))
      best = i;
  }
  return best;
}

}  // namespace sluice
