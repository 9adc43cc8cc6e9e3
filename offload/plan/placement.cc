#include "offload/plan/placement.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/cord.h"
#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

constexpr char kSmallest[] = "sluice/smallest_budget_bytes";  // a payload

absl::Status TooSmall(const char* tier, Bytes budget, Bytes smallest, std::string_view what,
                      std::string_view advice) {
  absl::Status status = absl::ResourceExhaustedError(fmt::format(
      "the {} budget of {} ({} bytes) can't work: {}; the smallest that would is {} ({} bytes){}",
      tier, FormatBytesDown(budget), budget.value(), what, FormatBytesUp(smallest),
      smallest.value(), advice));
  status.SetPayload(kSmallest, absl::Cord(std::to_string(smallest.value())));
  return status;
}

// What gradients take of a tier, chunk by chunk: those of a unit lie together.
class GradRoom {
 public:
  explicit GradRoom(const ModelLayout* layout) : layout_(layout) {}

  // What the next chunk adds.
  Bytes More(size_t chunk) const {
    const ChunkLayout& c = layout_->chunks()[chunk];
    const Bytes here = c.unit.value() == unit_ ? here_ : Bytes(0);
    return RoundUp(here + c.grad_bytes(), kSlotAlignment) - RoundUp(here, kSlotAlignment);
  }
  void Add(size_t chunk) {
    const ChunkLayout& c = layout_->chunks()[chunk];
    here_ = c.unit.value() == unit_ ? here_ + c.grad_bytes() : c.grad_bytes();
    unit_ = c.unit.value();
  }

 private:
  const ModelLayout* layout_;
  uint32_t unit_ = UINT32_MAX;  // none yet
  Bytes here_;                  // of that unit
};

// Chooses homes and buffers, tier by tier.
class Placer {
 public:
  Placer(const ModelLayout& layout, const Budgets& budgets, const PlacementOptions& options)
      : layout_(layout), budgets_(budgets), options_(options) {}

  absl::StatusOr<Placement> Run() {
    p_.io_alignment = options_.io_alignment;
    p_.hbm_in_place = options_.hbm_in_place;
    p_.reduction = options_.reduction;
    p_.device_sums = options_.highest_state_tier == Tier::kHbm;
    p_.task_elements = options_.task_elements;
    for (const UnitLayout& unit : layout_.units())
      slots_.push_back(RoundUp(unit.param_bytes(), kSlotAlignment));
    if (layout_.sharding().params) {
      SLUICE_RETURN_IF_ERROR(PlaceShards());
    } else {
      SLUICE_RETURN_IF_ERROR(states_in_hbm() ? PlaceAllInHbm() : PlaceInHbm());
    }
    SLUICE_RETURN_IF_ERROR(PlaceInPinned());
    SumUp(layout_, &p_);
    if (p_.nvme() > budgets_.nvme) {
      return TooSmall("nvme", budgets_.nvme, p_.nvme(), "what the pinned budget can't hold is more",
                      "; or raise the pinned budget");
    }
    return std::move(p_);
  }

 private:
  bool params_may_go() const {
    return !all_fit_ && options_.lowest_param_tier == Tier::kNvme && p_.params_pinned > Bytes(0);
  }
  bool states_in_hbm() const { return options_.lowest_state_tier == Tier::kHbm; }
  bool StaysInHbm(const UnitLayout& unit) const {
    return unit.lent || unit.stays_in_hbm || unit.elements <= options_.resident_elements_max;
  }

  absl::Status PlaceAllInHbm() {
    p_.param_home.assign(layout_.units().size(), Tier::kHbm);
    p_.state_home.assign(layout_.chunks().size(), Tier::kHbm);
    p_.grad_home.assign(layout_.chunks().size(), Tier::kHbm);
    SumUp(layout_, &p_);
    if (p_.hbm() <= budgets_.hbm) return absl::OkStatus();
    return TooSmall("hbm", budgets_.hbm, p_.hbm(),
                    "states, gradients and parameters must all stay there",
                    "; or let states go to pinned memory or NVMe (offload_optimizer)");
  }

  absl::Status PlaceInHbm() {
    Bytes all, largest, fixed;
    for (size_t u = 0; u < slots_.size(); ++u) {
      all += slots_[u];
      if (StaysInHbm(layout_.units()[u])) {
        fixed += slots_[u];
      } else {
        largest = std::max(largest, slots_[u]);
      }
    }
    SumUpExchange(layout_, &p_);
    const Bytes exchange = p_.exchange(Tier::kHbm);
    const char* const beside =
        exchange > Bytes(0) ? ", beside what gradients pass through among ranks" : "";
    const bool whole = all + exchange <= budgets_.hbm;
    if (!whole && options_.lowest_param_tier == Tier::kHbm) {
      return TooSmall("hbm", budgets_.hbm, all + exchange,
                      fmt::format("all parameters must stay there{}", beside),
                      "; or let parameters go to pinned memory or NVMe (offload_param)");
    }
    if (!whole && fixed + largest + exchange > budgets_.hbm) {
      return TooSmall(
          "hbm", budgets_.hbm, fixed + largest + exchange,
          fmt::format("the largest unit must fit beside those that stay there{}", beside), "");
    }
    for (const UnitLayout& unit : layout_.units()) {
      p_.param_home.push_back(whole || StaysInHbm(unit) ? Tier::kHbm : Tier::kPinned);
    }
    const Bytes resident = whole ? all : fixed;
    const Bytes left = budgets_.hbm - exchange - resident;
    p_.hbm_cache = std::min(all - resident,
                            Bytes(left.value() / kSlotAlignment.value() * kSlotAlignment.value()));
    p_.state_home.assign(layout_.chunks().size(), Tier::kPinned);
    p_.grad_home.assign(layout_.chunks().size(), Tier::kPinned);
    if (whole && options_.highest_state_tier == Tier::kHbm) HomeStatesInHbm(left);
    return absl::OkStatus();
  }

  // States and gradients that may not leave HBM are there too; what is left is the cache.
  absl::Status PlaceShards() {
    const bool in_hbm = options_.lowest_param_tier == Tier::kHbm || states_in_hbm();
    p_.shards_may_go = !in_hbm && (options_.lowest_param_tier == Tier::kNvme || !p_.hbm_in_place);
    Bytes largest, all;
    for (size_t u = 0; u < slots_.size(); ++u) {
      const UnitLayout& unit = layout_.units()[u];
      p_.shared.push_back(!StaysInHbm(unit));
      p_.param_home.push_back(in_hbm || !p_.shared[u] ? Tier::kHbm : Tier::kPinned);
      if (!p_.shared[u]) continue;
      largest = std::max(largest, slots_[u]);
      all += slots_[u];
    }
    const Tier states = states_in_hbm() ? Tier::kHbm : Tier::kPinned;
    p_.state_home.assign(layout_.chunks().size(), states);
    p_.grad_home.assign(layout_.chunks().size(), states);
    SumUp(layout_, &p_);
    const Bytes least = p_.hbm() + largest;
    if (least > budgets_.hbm) {
      return TooSmall(
          "hbm", budgets_.hbm, least,
          "the largest unit must fit beside this rank's shards and what stays there",
          in_hbm ? "; or let parameters go to pinned memory or NVMe (offload_param)" : "");
    }
    const Bytes left = budgets_.hbm - p_.hbm();
    p_.hbm_cache =
        std::min(all, Bytes(left.value() / kSlotAlignment.value() * kSlotAlignment.value()));
    return absl::OkStatus();
  }

  // With their gradients, the room for what is added to these, and the sums.
  void HomeStatesInHbm(Bytes left) {
    left -= SquareSumsOf(layout_);
    GradRoom grads(&layout_);
    Bytes adds;
    for (size_t c = 0; c < p_.state_home.size(); ++c) {
      const ChunkLayout& chunk = layout_.chunks()[c];
      if (chunk.keep != Keep::kAll) continue;
      left -= RoundUp(chunk.state_bytes(), kSlotAlignment) + grads.More(c);
      adds = std::max(adds, RoundUp(chunk.grad_bytes(), kSlotAlignment) * kBuffersMin);
      if (left < adds) return;
      grads.Add(c);
      p_.state_home[c] = p_.grad_home[c] = Tier::kHbm;
    }
  }

  absl::Status PlaceInPinned() {
    const bool states_stay = options_.lowest_state_tier != Tier::kNvme;
    const bool params_stay = options_.lowest_param_tier != Tier::kNvme;
    // As if everything stayed: what it takes, and how large the buffers are.
    SumUp(layout_, &p_);
    const Bytes grads = p_.grads_pinned;
    const Bytes states = p_.states_pinned;
    const Bytes params = p_.params_pinned;
    states_move_ = p_.state_buffer_bytes > Bytes(0);
    p_.state_buffers = states_move_ ? kBuffersMin : 0;
    p_.param_buffers = kBuffersMin;
    const Bytes buffers = p_.state_buffer_bytes * p_.state_buffers +
                          p_.param_buffer_bytes * kBuffersMin + p_.exchange(Tier::kPinned);
    const Bytes grad_buffers = p_.grad_buffer_bytes * kBuffersMin;

    const bool grads_may_go = !states_stay && grad_buffers < grads;
    p_.least_pinned = {.gradients = grads_may_go ? p_.sums : p_.sums + grads,
                       .buffers = grads_may_go ? buffers + grad_buffers : buffers,
                       .states = states_stay ? states : Bytes(0),
                       .params = params_stay ? params : Bytes(0)};
    const Bytes least = p_.least_pinned.total();
    if (least > budgets_.pinned) {
      return TooSmall(
          "pinned", budgets_.pinned, least, p_.least_pinned.Sentence(),
          states_stay || params_stay ? "; or let states and parameters go to NVMe" : "");
    }
    grads_move_ = grads_may_go && least - grad_buffers + grads > budgets_.pinned;
    p_.grad_buffers = grads_move_ ? kBuffersMin : 0;
    Bytes left = budgets_.pinned - least;
    if (grads_may_go && !grads_move_) left = left + grad_buffers - grads;
    // If it all fits, buffers get what is left over; otherwise as many as keep the drive busy,
    // before anything stays for good.
    const Bytes all = (states_stay ? Bytes(0) : states) + (params_stay ? Bytes(0) : params);
    all_fit_ = !grads_move_ && all <= left;
    left -= AddBuffers(all_fit_ ? left - all : left / 2);
    if (grads_move_) HomeGrads(&left);
    if (!params_stay) HomeParams(&left);
    if (!states_stay) HomeStates(&left);
    return absl::OkStatus();
  }

  // More buffers of every kind, as many as wanted and as `room` holds, those for parameters as
  // large as copies are to be. Returns their bytes.
  Bytes AddBuffers(Bytes room) {
    struct Kind {
      int* count;
      int wanted;
      Bytes size;
    };
    const Bytes chunk = p_.param_buffer_bytes;
    Bytes used = EnlargeParamBuffers(room / 2);
    const Kind kinds[] = {
        {&p_.state_buffers, states_move_ && !all_fit_ ? options_.state_buffers : 0,
         p_.state_buffer_bytes},
        {&p_.param_buffers, ParamBuffersWanted(chunk), p_.param_buffer_bytes},
        {&p_.grad_buffers, grads_move_ ? options_.grad_buffers : 0, p_.grad_buffer_bytes}};
    while (true) {
      Bytes more;
      for (const Kind& kind : kinds) more += *kind.count < kind.wanted ? kind.size : Bytes(0);
      if (more == Bytes(0) || used + more > room) return used;
      for (const Kind& kind : kinds) *kind.count += *kind.count < kind.wanted ? 1 : 0;
      used += more;
    }
  }

  // To what holds copy_bytes of whole chunks, or the largest unit that crosses the link in chunks.
  Bytes EnlargeParamBuffers(Bytes room) {
    if (p_.hbm_in_place || states_in_hbm()) return Bytes(0);
    Bytes largest;
    for (uint32_t u = 0; u < layout_.units().size(); ++u) {
      const UnitLayout& unit = layout_.units()[u];
      const bool may_come_from_nvme = p_.param_home[u] != Tier::kHbm && params_may_go();
      Bytes sum;
      for (uint32_t c = unit.first_chunk; c < unit.first_chunk + unit.chunk_count; ++c) {
        if (may_come_from_nvme || p_.CopiesUpdate(layout_, c))
          sum += RoundUp(layout_.chunks()[c].param_bytes(), options_.io_alignment);
      }
      largest = std::max(largest, sum);
    }
    const Bytes chunk = p_.param_buffer_bytes;
    const Bytes enough = RoundUp(options_.copy_bytes, options_.io_alignment) + chunk;
    const Bytes wanted = std::max(chunk, std::min(largest, enough));
    const Bytes more = (wanted - chunk) * p_.param_buffers;
    if (more > room) return Bytes(0);
    p_.copy_room = p_.param_buffer_bytes = wanted;
    return more;
  }

  // As many bytes as the chunks on their way take; and, of those that hold several, one for the
  // beginning of what others hold the end of, and one that is being copied.
  int ParamBuffersWanted(Bytes chunk) const {
    // Gradients that are added pass through them too, on their way over a link.
    const bool others = params_may_go() || (!p_.hbm_in_place && !all_fit_);
    int64_t chunks = others ? options_.param_buffers : 0;
    for (uint32_t c = 0; c < layout_.chunks().size(); ++c) {
      if (p_.CopiesUpdate(layout_, c))
        chunks = std::max<int64_t>(chunks, ResidentUpdates(options_.workers));
    }
    if (p_.param_buffer_bytes > chunk)
      chunks = RoundUp(chunk * chunks, p_.param_buffer_bytes) / p_.param_buffer_bytes + 2;
    return static_cast<int>(chunks);
  }

  void HomeGrads(Bytes* left) {
    GradRoom room(&layout_);
    bool full = false;
    for (size_t c = 0; c < p_.grad_home.size(); ++c) {
      if (p_.grad_home[c] != Tier::kPinned || layout_.chunks()[c].grad_bytes() == Bytes(0))
        continue;
      full = full || room.More(c) > *left;
      if (full) {
        p_.grad_home[c] = Tier::kNvme;
      } else {
        *left -= room.More(c);
        room.Add(c);
      }
    }
  }

  void HomeParams(Bytes* left) {
    bool full = false;
    for (size_t u = 0; u < p_.param_home.size(); ++u) {
      if (p_.param_home[u] != Tier::kPinned) continue;
      full = full || p_.home_bytes[u] > *left;
      if (full) {
        p_.param_home[u] = Tier::kNvme;
      } else {
        *left -= p_.home_bytes[u];
      }
    }
  }

  void HomeStates(Bytes* left) {
    bool full = false;
    for (size_t c = 0; c < p_.state_home.size(); ++c) {
      const Bytes bytes = RoundUp(layout_.chunks()[c].state_bytes(), kSlotAlignment);
      if (p_.state_home[c] != Tier::kPinned || bytes == Bytes(0)) continue;  // or there are none
      full = full || bytes > *left;
      if (full) {
        p_.state_home[c] = Tier::kNvme;
      } else {
        *left -= bytes;
      }
    }
  }

  const ModelLayout& layout_;
  const Budgets& budgets_;
  const PlacementOptions& options_;
  std::vector<Bytes> slots_;
  bool states_move_ = false;  // there are any
  bool grads_move_ = false;
  bool all_fit_ = false;
  Placement p_;
};

}  // namespace

std::string LeastPinned::Sentence() const {
  const std::pair<Bytes, const char*> parts[] = {{gradients, "gradients"},
                                                 {buffers, "buffers"},
                                                 {params, "parameters that may not go to NVMe"},
                                                 {states, "states that may not go to NVMe"}};
  std::vector<std::string> named;
  for (const auto& [bytes, what] : parts) {
    if (bytes > Bytes(0)) named.push_back(fmt::format("{} of {}", FormatBytes(bytes), what));
  }
  std::string text = fmt::format("RAM must hold at least {}", FormatBytesUp(total()));
  for (size_t i = 0; i < named.size(); ++i) {
    text += i == 0 ? ": " : i + 1 == named.size() ? " and " : ", ";
    text += named[i];
  }
  return text;
}

absl::StatusOr<Placement> MakePlacement(const ModelLayout& layout, const Budgets& budgets,
                                        const PlacementOptions& options) {
  return Placer(layout, budgets, options).Run();
}

std::optional<Bytes> SmallestThatWould(const absl::Status& status) {
  const auto payload = status.GetPayload(kSmallest);
  if (!payload) return std::nullopt;
  return Bytes(std::stoll(std::string(*payload)));
}

}  // namespace sluice
