#include "offload/sim/recording.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace sluice {

namespace {

using Json = nlohmann::ordered_json;
using Kind = RecordedCall::Kind;

constexpr int64_t kBytesMax = int64_t{1} << 60;
constexpr double kRateMax = 1e18;
constexpr double kSecondsMax = 86'400;

// Values of an object by keys with dots between. The first that won't do is remembered, and what
// was asked for then is its least, so that a reader checks once, at its end.
class Values {
 public:
  explicit Values(const Json& whole) : whole_(whole) {}

  int64_t Whole(std::string_view path, int64_t low, int64_t high) {
    const Json* const found = Find(path);
    return found == nullptr ? low : WholeOf(*found, path, low, high);
  }
  // Null: nothing.
  std::optional<double> Number(std::string_view path) {
    const Json* const found = Find(path);
    if (found == nullptr || found->is_null()) return std::nullopt;
    const bool good =
        found->is_number() && found->get<double>() >= 0 && found->get<double>() <= kRateMax;
    if (!good) Refuse(path);
    return good ? std::optional(found->get<double>()) : std::nullopt;
  }
  bool Flag(std::string_view path) {
    const Json* const found = Find(path);
    if (found != nullptr && !found->is_boolean()) Refuse(path);
    return found != nullptr && found->is_boolean() && found->get<bool>();
  }
  std::string Word(std::string_view path) {
    const Json* const found = Find(path);
    if (found != nullptr && !found->is_string()) Refuse(path);
    return found != nullptr && found->is_string() ? found->get<std::string>() : "";
  }
  // A list, empty if it won't do.
  const Json& List(std::string_view path, size_t most) {
    static const Json kNone = Json::array();
    const Json* const found = Find(path);
    if (found == nullptr) return kNone;
    if (found->is_array() && found->size() <= most) return *found;
    Refuse(path);
    return kNone;
  }
  int64_t WholeOf(const Json& value, std::string_view path, int64_t low, int64_t high) {
    const bool whole = value.is_number_integer() &&
                       !(value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX);
    if (whole && value.get<int64_t>() >= low && value.get<int64_t>() <= high)
      return value.get<int64_t>();
    Refuse(path);
    return low;
  }
  void Refuse(std::string_view path) {
    if (status_.ok())
      status_ =
          absl::InvalidArgumentError(fmt::format("'{}' is missing, or none that a run has", path));
  }
  const absl::Status& status() const { return status_; }

 private:
  const Json* Find(std::string_view path) {
    const Json* at = &whole_;
    for (std::string_view rest = path; at != nullptr;) {
      const size_t dot = rest.find('.');
      const auto next = at->is_object() ? at->find(rest.substr(0, dot)) : at->end();
      at = at->is_object() && next != at->end() ? &*next : nullptr;
      if (dot == std::string_view::npos) break;
      rest.remove_prefix(dot + 1);
    }
    if (at == nullptr) Refuse(path);
    return at;
  }

  const Json& whole_;
  absl::Status status_;
};

FloatType FloatOf(const std::string& name, Values* values) {
  for (const FloatType type : {FloatType::kF32, FloatType::kBf16, FloatType::kF16}) {
    if (name == Name(type)) return type;
  }
  values->Refuse("units");
  return FloatType::kF32;
}

ElementType ElementOf(const std::string& name, Values* values) {
  const ElementType bytes = ElementType::Bytes();
  return name == bytes.name() ? bytes : ElementType(FloatOf(name, values));
}

void ReadModel(Values* values, ModelSpec* spec) {
  for (const Json& json : values->List("units", Recording::kUnitsMax)) {
    Values unit(json);
    const UnitTypes types = {.param = ElementOf(unit.Word("param_dtype"), values),
                             .grad = FloatOf(unit.Word("grad_dtype"), values)};
    spec->units.push_back({.name = fmt::format("unit {}", spec->units.size()),
                           .stays_in_hbm = unit.Flag("stays_in_hbm"),
                           .types = types});
    if (!unit.status().ok()) return values->Refuse("units");
  }
  const Json& units = values->List("tensors.unit", Recording::kTensorsMax);
  const Json& elements = values->List("tensors.elements", Recording::kTensorsMax);
  const Json& keeps = values->List("tensors.keep", Recording::kTensorsMax);
  if (spec->units.empty() || elements.size() != units.size() || keeps.size() != units.size())
    return values->Refuse("tensors");
  const auto last = static_cast<int64_t>(spec->units.size()) - 1;
  for (size_t t = 0; t < units.size(); ++t) {
    const int64_t unit = values->WholeOf(units[t], "tensors.unit", 0, last);
    const int64_t keep = values->WholeOf(keeps[t], "tensors.keep", 0, 3);
    spec->tensors.push_back(
        {.name = fmt::format("tensor {}", t),
         .unit = UnitIndex(static_cast<uint32_t>(unit)),
         .elements = values->WholeOf(elements[t], "tensors.elements", 1, kElementsMax),
         .keep = static_cast<Keep>(keep)});
  }
}

// A run has not many more chunks than are wanted (factory.h).
void CheckChunks(Values* values, const Recording& recording) {
  int64_t chunks = 0;
  for (const ModelSpec::Tensor& tensor : recording.spec.tensors)
    chunks += tensor.elements / recording.config.chunk_elements;
  if (chunks > 2 * kChunksWanted) values->Refuse("report.chunk_elements");
  // Each worker has room for some chunks.
  constexpr int64_t kWorkedOnMax = int64_t{1} << 32;
  if (recording.config.chunk_elements > kWorkedOnMax / recording.config.workers)
    values->Refuse("report.chunk_elements");
}

Tier TierOf(Values* values, std::string_view path) {
  return static_cast<Tier>(values->Whole(path, 0, 2));
}

int Count(Values* values, std::string_view path, int64_t low, int64_t high) {
  return static_cast<int>(values->Whole(path, low, high));
}

void ReadPlan(Values* values, RuntimeConfig* config) {
  PlacementOptions& p = config->placement;
  p.lowest_param_tier = TierOf(values, "options.lowest_param_tier");
  p.lowest_state_tier = TierOf(values, "options.lowest_state_tier");
  p.highest_state_tier = config->highest_state_tier_on_host =
      TierOf(values, "options.highest_state_tier");
  p.resident_elements_max = values->Whole("options.resident_elements_max", 0, kElementsMax);
  p.state_buffers = Count(values, "options.state_buffers", kBuffersMin, 1 << 20);
  p.param_buffers = Count(values, "options.param_buffers", kBuffersMin, 1 << 20);
  p.grad_buffers = Count(values, "options.grad_buffers", kBuffersMin, 1 << 20);
  p.hbm_in_place = values->Flag("options.hbm_in_place");
  p.copy_bytes = Bytes(values->Whole("options.copy_bytes", 0, kBytesMax));
  p.task_elements = values->Whole("options.task_elements", kPieceElements, kElementsMax);
  const int64_t alignment =
      values->Whole("options.io_alignment", kSlotAlignment.value(), MiB(2).value());
  if ((alignment & (alignment - 1)) != 0) values->Refuse("options.io_alignment");
  if (p.task_elements % kPieceElements != 0) values->Refuse("options.task_elements");
  p.io_alignment = Bytes(alignment);
  config->device = DeviceKind::kHost;
  config->link_bytes_per_second = p.hbm_in_place ? 0 : 1;
  config->overlap = values->Flag("options.overlap");
  config->io.in_flight_max = static_cast<uint32_t>(values->Whole("options.io_depth", 1, 4096));
  config->io.submit_batch_max = static_cast<uint32_t>(values->Whole("options.io_batch", 1, 4096));
  config->workers = Count(values, "report.cores.workers", 1, 4096);
  config->chunk_elements = values->Whole("report.chunk_elements", kCellElements, int64_t{1} << 30);
  if (config->chunk_elements % kCellElements != 0) values->Refuse("report.chunk_elements");
  const auto budget = [values](const char* path) {
    return Bytes(static_cast<int64_t>(
        std::min(values->Number(path).value_or(static_cast<double>(kNoLimit.value())),
                 static_cast<double>(kNoLimit.value()))));
  };
  config->budgets = {.hbm = budget("report.budgets_bytes.hbm"),
                     .pinned = budget("report.budgets_bytes.pinned"),
                     .nvme = budget("report.budgets_bytes.nvme")};
  const size_t drives = values->List("report.drives", 1024).size();
  for (size_t d = 0; d < drives; ++d) config->nvme_paths.push_back(fmt::format("drive {}", d));
}

std::optional<HardwareRates> ReadRates(Values* values) {
  HardwareRates rates;
  const auto nvme = values->Number("report.steps.rates.nvme_bytes");
  if (!nvme) return std::nullopt;
  const auto rate = [values](const char* name) {
    return values->Number(fmt::format("report.steps.rates.{}", name)).value_or(0);
  };
  rates.forward_seconds = rate("forward_seconds");
  rates.backward_seconds = rate("backward_seconds");
  if (std::max(rates.forward_seconds, rates.backward_seconds) > kSecondsMax)
    values->Refuse("report.steps.rates");
  rates.nvme_bytes = *nvme;
  rates.update_elements = rate("update_elements");
  rates.checksum_bytes = rate("checksum_bytes");
  rates.copy_bytes = rate("copy_bytes");
  rates.shared_cores = values->Flag("report.steps.rates.shared_cores");
  return rates;
}

// How high the index of a call of that kind may be; nothing: there is no such kind.
std::optional<int64_t> HighestIndex(Kind kind, const ModelSpec& spec, size_t calls_before) {
  switch (kind) {
    case Kind::kBegin:
      return 2 * int64_t{TraceBook::kKeys} - 1;
    case Kind::kAcquire:
    case Kind::kRelease:
      return static_cast<int64_t>(spec.units.size()) - 1;
    case Kind::kGrads:
    case Kind::kMoreGrads:
      return static_cast<int64_t>(spec.tensors.size()) - 1;
    case Kind::kWait:
      return static_cast<int64_t>(calls_before) - 1;
    case Kind::kEnd:
    case Kind::kDrain:
    case Kind::kStep:
      return 0;
  }
  return std::nullopt;
}

bool HasTicket(Kind kind) {
  return kind == Kind::kAcquire || kind == Kind::kGrads || kind == Kind::kDrain;
}

void ReadCalls(Values* values, const ModelSpec& spec, std::vector<RecordedCall>* calls) {
  const std::string kinds = values->Word("calls.kinds");
  const Json& indices = values->List("calls.index", CallRecord::kCallsMax);
  const Json& owns = values->List("calls.own_ns", CallRecord::kCallsMax);
  if (indices.size() != kinds.size() || owns.size() != kinds.size()) return values->Refuse("calls");
  std::vector<bool> waited(kinds.size(), false);  // a ticket is used up
  bool step_waited = false;
  for (size_t i = 0; i < kinds.size(); ++i) {
    RecordedCall call{.kind = static_cast<Kind>(kinds[i])};
    const std::optional<int64_t> high = HighestIndex(call.kind, spec, i);
    if (!high) return values->Refuse("calls.kinds");
    const int64_t low = call.kind == Kind::kWait ? RecordedCall::kStepBefore : 0;
    call.index = values->WholeOf(indices[i], "calls.index", low, *high);
    call.own = Nanos(values->WholeOf(owns[i], "calls.own_ns", 0, CallRecord::kOwnMax.count()));
    if (!values->status().ok()) return;
    const auto of = static_cast<size_t>(call.index);
    if (call.kind == Kind::kWait) {
      const bool again = call.index < 0 ? std::exchange(step_waited, true) : bool{waited[of]};
      if (again || (call.index >= 0 && !HasTicket((*calls)[of].kind)))
        return values->Refuse("calls.index");
      if (call.index >= 0) waited[of] = true;
    }
    const bool more = call.kind == Kind::kMoreGrads;
    const bool after_grads =
        i > 0 && ((*calls)[i - 1].kind == Kind::kGrads || (*calls)[i - 1].kind == Kind::kMoreGrads);
    if (more && !after_grads) return values->Refuse("calls.kinds");
    const bool gives = more || call.kind == Kind::kGrads;
    if (gives && spec.tensors[of].keep == Keep::kParam) return values->Refuse("calls.index");
    if ((call.kind == Kind::kStep) != (i + 1 == kinds.size())) return values->Refuse("calls.kinds");
    calls->push_back(call);
  }
}

absl::Status CheckCanBe(Values* values, const Recording& recording) {
  if (values->Whole("report.ranks.ranks", 1, 1 << 20) > 1)
    return absl::FailedPreconditionError("a run of several ranks can't be replayed yet");
  for (const ModelSpec::Tensor& tensor : recording.spec.tensors) {
    if (!IsLent(tensor.keep)) continue;
    return absl::FailedPreconditionError(
        "a run whose parameters stay in the program's memory (sluice.AdamW without a module) can't "
        "be replayed");
  }
  if (values->Word("report.update_rule") != "AdamW" ||
      values->Word("report.state_format") != "fp32")
    return absl::FailedPreconditionError("only AdamW with states in fp32 can be replayed");
  if (recording.calls.empty()) {
    return absl::FailedPreconditionError(
        "no step was recorded: there must be two between which no rates are set");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Recording> ReadRecording(const nlohmann::ordered_json& json) {
  Values values(json);
  Recording recording;
  values.Whole("version", 1, 1);
  ReadModel(&values, &recording.spec);
  if (values.status().ok()) ReadPlan(&values, &recording.config);
  if (values.status().ok()) CheckChunks(&values, recording);
  recording.rates = ReadRates(&values);
  recording.step_seconds = values.Number("report.steps.seconds.p50");
  recording.callers_help = values.Flag("options.callers_help");
  recording.on_gpu = values.Word("report.device").starts_with("CUDA");
  if (values.status().ok()) ReadCalls(&values, recording.spec, &recording.calls);
  const absl::Status can = CheckCanBe(&values, recording);
  SLUICE_RETURN_IF_ERROR(values.status());
  SLUICE_RETURN_IF_ERROR(can);
  return recording;
}

}  // namespace sluice
