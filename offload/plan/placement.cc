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

// Fills one Placement, tier by tier.
class Placer {
 public:
  Placer(const ModelLayout& layout, const Budgets& budgets, const PlacementOptions& options)
      : layout_(layout), budgets_(budgets), options_(options) {}

  absl::StatusOr<Placement> Run() {
    const bool all_in_hbm = options_.lowest_state_tier == Tier::kHbm;
    p_.io_alignment = options_.io_alignment;
    p_.hbm_in_place = options_.hbm_in_place;
    p_.task_elements = options_.task_elements;
    MeasureGradients();
    SLUICE_RETURN_IF_ERROR(all_in_hbm ? PlaceAllInHbm() : PlaceInHbm());
    SLUICE_RETURN_IF_ERROR(PlaceInPinned());
    if (p_.nvme() > budgets_.nvme) {
      return TooSmall("nvme", budgets_.nvme, p_.nvme(),
                      "states and parameters beyond the pinned budget need more",
                      "; or raise the pinned budget");
    }
    return std::move(p_);
  }

 private:
  bool StaysInHbm(const UnitLayout& unit) const {
    return unit.lent || unit.stays_in_hbm || unit.elements <= options_.resident_elements_max;
  }

  void MeasureGradients() {
    for (const UnitLayout& unit : layout_.units())
      p_.grads += RoundUp(unit.grad_bytes(), kSlotAlignment);
  }

  absl::Status PlaceAllInHbm() {
    for (const UnitLayout& unit : layout_.units()) {
      p_.slot_bytes.push_back(RoundUp(unit.param_bytes(), kSlotAlignment));
      p_.param_home.push_back(Tier::kHbm);
      p_.hbm_fixed += p_.slot_bytes.back();
    }
    for (const ChunkLayout& chunk : layout_.chunks()) {
      p_.state_home.push_back(Tier::kHbm);
      if (chunk.keep == Keep::kParam) continue;
      p_.states_hbm += RoundUp(chunk.state_bytes(), kSlotAlignment);
      p_.grad_buffer_bytes =
          std::max(p_.grad_buffer_bytes, RoundUp(chunk.grad_bytes(), kSlotAlignment));
    }
    p_.grad_home = Tier::kHbm;
    p_.grad_buffers = kBuffersMin;
    p_.sums =
        RoundUp(Bytes(layout_.cell_count() * static_cast<int64_t>(sizeof(double))), kSlotAlignment);
    if (p_.hbm() <= budgets_.hbm) return absl::OkStatus();
    return TooSmall("hbm", budgets_.hbm, p_.hbm(),
                    "states, gradients and parameters must all stay there",
                    "; or let states go to pinned memory or NVMe (offload_optimizer)");
  }

  absl::Status PlaceInHbm() {
    Bytes all, largest, fixed;
    for (const UnitLayout& unit : layout_.units()) {
      const Bytes slot = RoundUp(unit.param_bytes(), kSlotAlignment);
      p_.slot_bytes.push_back(slot);
      all += slot;
      if (StaysInHbm(unit)) {
        fixed += slot;
      } else {
        largest = std::max(largest, slot);
      }
    }
    const bool whole = all <= budgets_.hbm;
    if (!whole && options_.lowest_param_tier == Tier::kHbm) {
      return TooSmall("hbm", budgets_.hbm, all, "all parameters must stay there",
                      "; or let parameters go to pinned memory or NVMe (offload_param)");
    }
    if (!whole && fixed + largest > budgets_.hbm) {
      return TooSmall("hbm", budgets_.hbm, fixed + largest,
                      "the largest unit must fit beside those that stay there", "");
    }
    for (const UnitLayout& unit : layout_.units()) {
      p_.param_home.push_back(whole || StaysInHbm(unit) ? Tier::kHbm : Tier::kPinned);
    }
    p_.hbm_fixed = whole ? all : fixed;
    const Bytes wanted = all - p_.hbm_fixed;
    const Bytes left = budgets_.hbm - p_.hbm_fixed;
    p_.hbm_cache =
        std::min(wanted, Bytes(left.value() / kSlotAlignment.value() * kSlotAlignment.value()));
    return absl::OkStatus();
  }

  absl::Status PlaceInPinned() {
    const bool states_elsewhere = !p_.state_home.empty();
    Bytes all_states, all_params;
    Bytes largest_states, largest_params;
    for (const ChunkLayout& chunk : layout_.chunks()) {
      if (!states_elsewhere) all_states += RoundUp(chunk.state_bytes(), kSlotAlignment);
      largest_states =
          std::max(largest_states, RoundUp(chunk.state_bytes(), options_.io_alignment));
      largest_params =
          std::max(largest_params, RoundUp(chunk.param_bytes(), options_.io_alignment));
    }
    for (uint32_t u = 0; u < layout_.units().size(); ++u) {
      if (p_.param_home[u] == Tier::kPinned) all_params += p_.slot_bytes[u];
    }
    p_.state_buffer_bytes = largest_states;
    p_.param_buffer_bytes = largest_params;

    // The least: buffers for two of each, and what may not go further down.
    p_.state_buffers = StatesMove() ? kBuffersMin : 0;
    p_.param_buffers = kBuffersMin;
    const bool states_stay = options_.lowest_state_tier != Tier::kNvme;
    const bool params_stay = options_.lowest_param_tier != Tier::kNvme;
    p_.least_pinned = {
        .gradients = p_.grad_home == Tier::kHbm ? p_.sums : p_.grads,
        .buffers = p_.state_buffer_bytes * p_.state_buffers + p_.param_buffer_bytes * kBuffersMin,
        .states = states_stay ? all_states : Bytes(0),
        .params = params_stay ? all_params : Bytes(0)};
    const Bytes least = p_.least_pinned.total();
    if (least > budgets_.pinned) {
      return TooSmall(
          "pinned", budgets_.pinned, least, p_.least_pinned.Sentence(),
          states_stay || params_stay ? "; or let states and parameters go to NVMe" : "");
    }
    Bytes left = budgets_.pinned - least;
    // If it all fits, buffers get what is left over; otherwise as many as keep the drive busy,
    // before anything stays for good.
    const Bytes all = (states_stay ? Bytes(0) : all_states) + (params_stay ? Bytes(0) : all_params);
    all_fit_ = all <= left;
    left -= AddBuffers(all_fit_ ? left - all : left / 2);
    HomeParams(params_stay ? &unlimited_ : &left);
    if (!states_elsewhere) HomeStates(states_stay ? &unlimited_ : &left);
    return absl::OkStatus();
  }

  bool StatesMove() const { return p_.state_buffer_bytes > Bytes(0); }  // there are any

  // More buffers of both kinds, as many as wanted and as `room` holds, those for parameters as
  // large as copies are to be. Returns their bytes.
  Bytes AddBuffers(Bytes room) {
    const Bytes chunk = p_.param_buffer_bytes;
    Bytes used = EnlargeParamBuffers(room / 2);
    const int states = StatesMove() && !all_fit_ ? options_.state_buffers : 0;
    const int params = ParamBuffersWanted(chunk);
    while (true) {
      const bool add_states = p_.state_buffers < states;
      const bool add_params = p_.param_buffers < params;
      const Bytes more = (add_states ? p_.state_buffer_bytes : Bytes(0)) +
                         (add_params ? p_.param_buffer_bytes : Bytes(0));
      if (more == Bytes(0) || used + more > room) return used;
      p_.state_buffers += add_states ? 1 : 0;
      p_.param_buffers += add_params ? 1 : 0;
      used += more;
    }
  }

  // To what holds copy_bytes of whole chunks, or the largest unit that crosses the link in chunks.
  Bytes EnlargeParamBuffers(Bytes room) {
    if (p_.hbm_in_place || p_.grad_home == Tier::kHbm) return Bytes(0);
    Bytes largest;
    for (uint32_t u = 0; u < layout_.units().size(); ++u) {
      const UnitLayout& unit = layout_.units()[u];
      const bool may_come_from_nvme = p_.param_home[u] != Tier::kHbm && !all_fit_;
      if (!p_.CopiesUpdates(layout_, u) && !may_come_from_nvme) continue;
      Bytes sum;
      for (const ChunkLayout& chunk : layout_.chunks().subspan(unit.first_chunk, unit.chunk_count))
        sum += RoundUp(chunk.param_bytes(), options_.io_alignment);
      largest = std::max(largest, sum);
    }
    const Bytes chunk = p_.param_buffer_bytes;
    const Bytes enough = RoundUp(options_.copy_bytes, options_.io_alignment) + chunk;
    const Bytes wanted = std::max(chunk, std::min(largest, enough));
    const Bytes more = (wanted - chunk) * p_.param_buffers;
    if (more > room) return Bytes(0);
    p_.param_buffer_bytes = wanted;
    return more;
  }

  // As many bytes as the chunks on their way take; and, of those that hold several, one for the
  // beginning of what others hold the end of, and one that is being copied.
  int ParamBuffersWanted(Bytes chunk) const {
    int64_t chunks = all_fit_ ? 0 : options_.param_buffers;
    for (uint32_t u = 0; u < layout_.units().size(); ++u) {
      if (p_.CopiesUpdates(layout_, u))
        chunks = std::max<int64_t>(chunks, ResidentUpdates(options_.workers));
    }
    if (p_.param_buffer_bytes > chunk)
      chunks = RoundUp(chunk * chunks, p_.param_buffer_bytes) / p_.param_buffer_bytes + 2;
    return static_cast<int>(chunks);
  }

  void HomeParams(Bytes* left) {
    bool full = false;
    for (uint32_t u = 0; u < p_.param_home.size(); ++u) {
      if (p_.param_home[u] != Tier::kPinned) continue;
      full = full || p_.slot_bytes[u] > *left;
      if (!full) {
        *left -= p_.slot_bytes[u];
        p_.params_pinned += p_.slot_bytes[u];
        continue;
      }
      p_.param_home[u] = Tier::kNvme;
      for (uint32_t c = 0; c < layout_.units()[u].chunk_count; ++c) {
        const ChunkLayout& chunk = layout_.chunks()[layout_.units()[u].first_chunk + c];
        p_.params_nvme += RoundUp(chunk.param_bytes(), options_.io_alignment);
      }
    }
  }

  void HomeStates(Bytes* left) {
    bool full = false;
    for (const ChunkLayout& chunk : layout_.chunks()) {
      const Bytes bytes = RoundUp(chunk.state_bytes(), kSlotAlignment);
      full = full || bytes > *left;
      if (bytes == Bytes(0)) {
        p_.state_home.push_back(Tier::kPinned);  // there are none
        continue;
      }
      p_.state_home.push_back(full ? Tier::kNvme : Tier::kPinned);
      if (full) {
        p_.states_nvme += RoundUp(chunk.state_bytes(), options_.io_alignment);
      } else {
        *left -= bytes;
        p_.states_pinned += bytes;
      }
    }
  }

  const ModelLayout& layout_;
  const Budgets& budgets_;
  const PlacementOptions& options_;
  Bytes unlimited_ = Bytes(INT64_MAX / 2);
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

namespace {

// What HBM must hold if everything lives there.
Bytes AllInHbm(const ModelLayout& layout, const PlacementOptions& options) {
  constexpr Bytes kUnlimited = Bytes(INT64_MAX / 2);
  const absl::StatusOr<Placement> placement =
      MakePlacement(layout, {kUnlimited, kUnlimited, kUnlimited}, options);
  SLUICE_CHECK(placement.ok());
  return placement->hbm();
}

}  // namespace

Budgets DefaultBudgets(const Budgets& given, const ModelLayout& layout,
                       const PlacementOptions& options, Bytes available,
                       std::optional<Bytes> gpu_available) {
  Bytes params, grads_and_states;
  for (const UnitLayout& unit : layout.units()) {
    params += RoundUp(unit.param_bytes(), kSlotAlignment);
    grads_and_states += RoundUp(Bytes(unit.updated_elements * 4), kSlotAlignment);
  }
  for (const ChunkLayout& chunk : layout.chunks())
    grads_and_states += RoundUp(chunk.state_bytes(), kSlotAlignment);

  Budgets budgets = given;
  if (budgets.hbm < Bytes(0) && options.lowest_state_tier == Tier::kHbm) {
    budgets.hbm = std::min(AllInHbm(layout, options), gpu_available.value_or(available / 4));
  } else if (budgets.hbm < Bytes(0)) {
    budgets.hbm = std::min(params, gpu_available ? *gpu_available / 2 : available / 4);
  }
  if (budgets.pinned < Bytes(0)) {
    const Bytes reserve =
        std::max(MiB(256), available / 8);  // for the process: activations, PyTorch, code
    const bool all_in_hbm = options.lowest_state_tier == Tier::kHbm;
    const Bytes hbm_used = all_in_hbm ? budgets.hbm : std::min(budgets.hbm, params);
    const Bytes hbm_here = gpu_available ? Bytes(0) : hbm_used;
    const Bytes most = std::max(Bytes(0), available - hbm_here - reserve);
    // Never more than all of it could use: gradients and states, parameters, and movement buffers.
    budgets.pinned = std::min(most, grads_and_states + params + MiB(256));
  }
  if (budgets.nvme < Bytes(0)) budgets.nvme = Bytes(INT64_MAX / 2);
  return budgets;
}

}  // namespace sluice
