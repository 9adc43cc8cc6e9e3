// A ds_config.json for `sluice plan`. python/sluice/deepspeed/config.py is what reads it whole;
// keys, defaults and meanings here are those of there.

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"
#include "tools/plan_options.h"

namespace sluice::tools {

namespace {

std::string Inner(const std::string& source, const char* section) {
  return fmt::format("{}: {}", source, section);
}

// A word, where "auto" is as if nothing were there.
std::string WordUnlessAuto(Fields* fields, const char* key) {
  std::string word = fields->Word(key, "");
  return word == "auto" ? "" : word;
}

// One of `choices`; the first, if it is not there.
size_t Choice(Fields* fields, const char* key, std::initializer_list<const char*> choices) {
  const std::string word = WordUnlessAuto(fields, key);
  const auto* const found = std::find(choices.begin(), choices.end(), word);
  if (word.empty()) return 0;
  if (found == choices.end()) {
    fields->Refuse(key, fmt::format("must be one of {}, not '{}'", fmt::join(choices, ", "), word));
    return 0;
  }
  return static_cast<size_t>(std::distance(choices.begin(), found));
}

// A size as text that ParseBytes takes; empty if it is not there.
std::string Size(Fields* fields, const Json& section, const char* key) {
  if (!fields->Has(key)) return "";
  if (section[key].is_number()) return fmt::format("{}", fields->Whole(key, 0, 0));
  std::string text = WordUnlessAuto(fields, key);
  if (text.empty()) return "";
  if (const auto parsed = ParseBytes(text); !parsed.ok())
    fields->Refuse(key, Message(parsed.status()));
  return text;
}

absl::Status ApplyTypes(const Json& config, const std::string& source, PlanOptions* options) {
  Fields top(config, source);
  const Json& bf16 = top.Section(top.Has("bf16") ? "bf16" : "bfloat16");
  Fields bf16_fields(bf16, Inner(source, "bf16"));
  Fields fp16_fields(top.Section("fp16"), Inner(source, "fp16"));
  Fields types(top.Section("data_types"), Inner(source, "data_types"));
  const bool is_bf16 =
      bf16_fields.Has("enabled") && bf16["enabled"] != "auto" && bf16_fields.Flag("enabled", false);
  const bool is_fp16 = fp16_fields.Has("enabled") && top.Section("fp16")["enabled"] != "auto" &&
                       fp16_fields.Flag("enabled", false);
  if (options->dtype.empty()) options->dtype = is_bf16 ? "bf16" : is_fp16 ? "fp16" : "fp32";
  constexpr const char* kTypes[] = {"", "fp32", "bf16", "fp16"};
  const size_t grad = Choice(&types, "grad_accum_dtype", {"", "fp32", "bf16", "fp16"});
  if (options->grad_dtype.empty()) options->grad_dtype = kTypes[grad];
  for (const Fields* fields : {&top, &bf16_fields, &fp16_fields, &types})
    SLUICE_RETURN_IF_ERROR(fields->status());
  return absl::OkStatus();
}

absl::Status ApplyTiers(const Json& config, const std::string& source, PlanOptions* options) {
  Fields top(config, source);
  const bool old_form = top.Has("zero_optimization") && config["zero_optimization"].is_boolean();
  const Json none = Json::object();
  const Json& zero = old_form ? none : top.Section("zero_optimization");
  Fields zero_fields(zero, Inner(source, "zero_optimization"));
  constexpr Tier kTiers[] = {Tier::kHbm, Tier::kPinned, Tier::kNvme};
  const std::pair<const char*, Tier*> parts[] = {
      {"offload_param", &options->lowest_param_tier},
      {"offload_optimizer", &options->lowest_state_tier}};
  for (const auto& [key, tier] : parts) {
    Fields part(zero_fields.Section(key), Inner(source, key));
    *tier = kTiers[Choice(&part, "device", {"none", "cpu", "nvme"})];
    SLUICE_RETURN_IF_ERROR(part.status());
    if (*tier == Tier::kNvme && options->nvme_paths.empty())
      options->nvme_paths.push_back(part.Word("nvme_path", "the drive"));
  }
  for (const char* key : {"param_persistence_threshold", "stage3_param_persistence_threshold"}) {
    if (zero_fields.Has(key) && zero[key] != "auto")
      options->resident_elements_max = zero_fields.Whole(key, 0, 0);
  }
  SLUICE_RETURN_IF_ERROR(zero_fields.status());
  return top.status();
}

}  // namespace

absl::Status ApplyDsConfig(const Json& config, const std::string& source, PlanOptions* options) {
  SLUICE_RETURN_IF_ERROR(ApplyTypes(config, source, options));
  SLUICE_RETURN_IF_ERROR(ApplyTiers(config, source, options));
  Fields top(config, source);
  const Json& own = top.Section("sluice");
  Fields fields(own, Inner(source, "sluice"));
  const std::pair<const char*, std::string*> sizes[] = {
      {"hbm", &options->hbm}, {"pinned", &options->pinned}, {"nvme", &options->nvme}};
  for (const auto& [key, size] : sizes) {
    const std::string given = Size(&fields, own, key);
    if (size->empty()) *size = given;
  }
  if (options->device.empty()) options->device = WordUnlessAuto(&fields, "device");
  if (options->chunk_elements == 0 && fields.Has("chunk_elements") &&
      own["chunk_elements"] != "auto")
    options->chunk_elements = fields.Whole("chunk_elements", 0, 0);
  SLUICE_RETURN_IF_ERROR(fields.status());
  return top.status();
}

}  // namespace sluice::tools
