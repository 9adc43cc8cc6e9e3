#include "nvme/tuned.h"

#include <cmath>
#include <initializer_list>
#include <set>
#include <utility>

#include "core/file_bytes.h"
#include "core/json_text.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "nvme/segments.h"

namespace sluice {

namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kVersion = 1;
constexpr size_t kFileBytesMax = size_t{1} << 20;
constexpr size_t kTextMax = 4096;
constexpr size_t kPathsMax = 256;
constexpr Bytes kRequestMax = MiB(256);
constexpr int64_t kDepthMax = 1024;  // what a run takes
constexpr double kRateMin = 1;
constexpr double kRateMax = 1e15;
constexpr IoEngineKind kEngines[] = {IoEngineKind::kIoUring, IoEngineKind::kLibaio,
                                     IoEngineKind::kThreads};

std::string Shown(const Json& value) {
  std::string text = JsonText(value, -1);
  if (text.size() > 80) text = text.substr(0, 80) + "...";
  return text;
}

// The object that `text` is. Keys that come twice, which the library would pass over, are refused.
absl::StatusOr<Json> ParseStrictly(const std::string& text, const std::string& source) {
  constexpr int kNestingMax = 8;
  std::string wrong;
  std::vector<std::set<std::string>> keys;
  const auto keep = [&](int depth, Json::parse_event_t event, const Json& value) {
    if (depth > kNestingMax) wrong = "is nested too deeply";
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
      wrong = fmt::format("has the key {} twice", Shown(value));
    return wrong.empty();
  };
  Json json = Json::parse(text, keep, /*allow_exceptions=*/false);
  if (wrong.empty() && json.is_discarded()) wrong = "is not JSON";
  if (wrong.empty() && !json.is_object()) wrong = "must hold an object, not " + Shown(json);
  if (!wrong.empty()) return absl::InvalidArgumentError(fmt::format("{} {}", source, wrong));
  return json;
}

// An object whose keys are taken one by one. The first thing that is wrong is remembered, and what
// was asked for then is anything.
class Object {
 public:
  Object(const Json& json, std::string where, absl::Status* status)
      : json_(json), where_(std::move(where)), status_(status) {
    if (!json.is_object()) Refuse("", "must be an object, not " + Shown(json));
  }

  void Refuse(const std::string& key, const std::string& what) {
    if (!status_->ok()) return;
    *status_ = absl::InvalidArgumentError(
        fmt::format("{}: {}{}{}", where_, key, key.empty() ? "" : " ", what));
  }

  const Json& At(const char* key) {
    static const Json* const none = new Json;
    taken_.insert(key);
    const auto found = json_.find(key);
    if (json_.is_object() && found != json_.end()) return *found;
    Refuse(key, "is missing");
    return *none;
  }
  int64_t Whole(const char* key, int64_t low, int64_t high) {
    const Json& value = At(key);
    // Of an unsigned number, what is beyond int64_t is negative here, and `low` is not.
    if (value.is_number_integer() && value.get<int64_t>() >= low && value.get<int64_t>() <= high)
      return value.get<int64_t>();
    Refuse(key,
           fmt::format("must be a whole number from {} to {}, not {}", low, high, Shown(value)));
    return low;
  }
  double Rate(const char* key) {
    const Json& value = At(key);
    const double rate = value.is_number() ? value.get<double>() : std::nan("");
    if (rate >= kRateMin && rate <= kRateMax) return rate;
    Refuse(key,
           fmt::format("must be a number from {} to {}, not {}", kRateMin, kRateMax, Shown(value)));
    return 1;
  }
  std::string Text(const char* key) {
    const Json& value = At(key);
    if (value.is_string() && !value.get_ref<const std::string&>().empty() &&
        value.get_ref<const std::string&>().size() <= kTextMax)
      return value.get<std::string>();
    Refuse(key, fmt::format("must be a text of 1 to {} bytes, not {}", kTextMax, Shown(value)));
    return "";
  }
  std::string TextOrNull(const char* key) { return At(key).is_null() ? "" : Text(key); }
  Object Inner(const char* key) { return {At(key), fmt::format("{}: {}", where_, key), status_}; }

  // That no key is left.
  void End() {
    if (!json_.is_object()) return;
    for (const auto& item : json_.items()) {
      if (!taken_.contains(item.key())) Refuse("", "has an unknown key " + Shown(Json(item.key())));
    }
  }

 private:
  const Json& json_;
  std::string where_;
  absl::Status* status_;
  std::set<std::string> taken_;
};

IoEngineKind ParseEngine(Object* object) {
  const std::string name = object->Text("engine");
  for (const IoEngineKind kind : kEngines)
    if (name == Name(kind)) return kind;
  object->Refuse("engine",
                 fmt::format("must be io_uring, libaio or threads, not {}", Shown(Json(name))));
  return kEngines[0];
}

TunedSettings ParseSettings(Object object) {
  TunedSettings settings;
  settings.request =
      Bytes(object.Whole("request_bytes", kExtentAlignment.value(), kRequestMax.value()));
  if (settings.request.value() % kExtentAlignment.value() != 0)
    object.Refuse("request_bytes", fmt::format("must be a multiple of {}, not {}",
                                               kExtentAlignment.value(), settings.request.value()));
  settings.depth = static_cast<uint32_t>(object.Whole("depth", 1, kDepthMax));
  settings.batch = static_cast<uint32_t>(object.Whole("batch", 1, settings.depth));
  settings.engine = ParseEngine(&object);
  settings.read_rate = object.Rate("read_bytes_per_second");
  settings.write_rate = object.Rate("write_bytes_per_second");
  settings.mixed_rate = object.Rate("mixed_bytes_per_second");
  object.End();
  return settings;
}

Tuned::Path ParsePath(Object object) {
  Tuned::Path path;
  path.drive.path = object.Text("path");
  if (!path.drive.path.starts_with('/')) object.Refuse("path", "must be absolute");
  path.drive.file_system = object.Text("file_system");
  path.drive.device = object.TextOrNull("device");
  path.drive.model = object.TextOrNull("model");
  path.drive.serial = object.TextOrNull("serial");
  if (!object.At("size_bytes").is_null())
    path.drive.size = Bytes(object.Whole("size_bytes", 1, INT64_MAX));
  path.settings = ParseSettings(object.Inner("settings"));
  object.End();
  return path;
}

Json SettingsJson(const TunedSettings& settings) {
  return {{"request_bytes", settings.request.value()},
          {"depth", settings.depth},
          {"batch", settings.batch},
          {"engine", Name(settings.engine)},
          {"read_bytes_per_second", settings.read_rate},
          {"write_bytes_per_second", settings.write_rate},
          {"mixed_bytes_per_second", settings.mixed_rate}};
}

Json OrNull(const std::string& text) { return text.empty() ? Json() : Json(text); }

}  // namespace

const char* Name(IoEngineKind engine) {
  switch (engine) {
    case IoEngineKind::kIoUring:
      return "io_uring";
    case IoEngineKind::kLibaio:
      return "libaio";
    case IoEngineKind::kThreads:
      return "threads";
    case IoEngineKind::kAuto:
      break;
  }
  return "auto";
}

std::string TunedText(const Tuned& tuned) {
  Json json = {{"sluice_tuned", kVersion},
               {"machine",
                {{"host", tuned.machine.host},
                 {"cpu", tuned.machine.cpu},
                 {"kernel", tuned.machine.kernel}}},
               {"paths", Json::array()},
               {"set", SettingsJson(tuned.set)}};
  for (const Tuned::Path& path : tuned.paths) {
    const DriveIdentity& drive = path.drive;
    json["paths"].push_back(
        {{"path", drive.path},
         {"file_system", drive.file_system},
         {"device", OrNull(drive.device)},
         {"model", OrNull(drive.model)},
         {"serial", OrNull(drive.serial)},
         {"size_bytes", drive.size > Bytes(0) ? Json(drive.size.value()) : Json()},
         {"settings", SettingsJson(path.settings)}});
  }
  return JsonText(std::move(json), 2) + "\n";
}

absl::StatusOr<Tuned> ParseTuned(const std::string& text, const std::string& source) {
  SLUICE_ASSIGN_OR_RETURN(const Json json, ParseStrictly(text, source));
  absl::Status status;
  Object top(json, source, &status);
  const Json& version = top.At("sluice_tuned");
  if (status.ok() && version != kVersion)
    top.Refuse("sluice_tuned",
               fmt::format("is {}, and this version of Sluice reads {}: run sluice tune again",
                           Shown(version), kVersion));
  Tuned tuned;
  Object machine = top.Inner("machine");
  tuned.machine.host = machine.Text("host");
  tuned.machine.cpu = machine.Text("cpu");
  tuned.machine.kernel = machine.Text("kernel");
  machine.End();
  const Json& paths = top.At("paths");
  if (!paths.is_array() || paths.empty() || paths.size() > kPathsMax) {
    top.Refuse("paths", fmt::format("must be a list of 1 to {} directories", kPathsMax));
  } else {
    std::set<std::string> seen;
    for (const Json& path : paths) {
      const std::string where = fmt::format("{}: paths[{}]", source, tuned.paths.size());
      tuned.paths.push_back(ParsePath({path, where, &status}));
      if (!seen.insert(tuned.paths.back().drive.path).second)
        top.Refuse("paths", fmt::format("has {} twice", Shown(path.at("path"))));
      if (!status.ok()) return status;
    }
  }
  tuned.set = ParseSettings(top.Inner("set"));
  top.End();
  if (!status.ok()) return status;
  return tuned;
}

absl::StatusOr<Tuned> ReadTuned(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const std::string text, ReadBytes(path, 0, kFileBytesMax + 1));
  if (text.size() > kFileBytesMax)
    return absl::InvalidArgumentError(fmt::format("{} has more than 1 MiB", path));
  return ParseTuned(text, path);
}

}  // namespace sluice
