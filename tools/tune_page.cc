#include "tools/tune_page.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include "core/config.h"
#include "fmt/format.h"
#include "tools/bench_report.h"

namespace sluice::tools {

namespace {

constexpr int64_t kKeysVersion = 1;
constexpr int kBarColumns = 40;
constexpr double kSame = 0.03;  // of two rates, what is no difference

std::string Rate(double bytes_per_second) { return FigureText(bytes_per_second / 1e9); }

Json FoundJson(const TunedDrives& found) {
  Json json = {{"engine", found.engine},
               {"untuned_bytes_per_second", found.untuned_rate},
               {"written_bytes", found.written.value()},
               {"checked_bytes", found.checked.value()},
               {"measurements", found.tuning.measurements},
               {"cut_short", found.cut_short},
               {"tried", Json::array()}};
  for (const auto& [point, share] : found.tuning.tried) {
    json["tried"].push_back({{"engine", Name(point.engine)},
                             {"request_bytes", point.request.value()},
                             {"depth", point.depth()},
                             {"batch", point.batch},
                             {"share", share}});
  }
  return json;
}

Json DsConfig(const TunedSettings& set, const std::string& file) {
  return {{"aio",
           {{"block_size", set.request.value()},
            {"queue_depth", set.depth},
            {"intra_op_parallelism", 1},
            {"single_submit", set.batch == 1},
            {"overlap_events", true}}},
          {"sluice", {{"tuned", file}}}};
}

std::vector<std::string> WarningsOf(const TuneResult& result) {
  std::vector<std::string> warnings;
  for (const TuneResult::Path& path : result.paths)
    warnings.insert(warnings.end(), path.plan.warnings.begin(), path.plan.warnings.end());
  return warnings;
}

void AddFound(const std::string& name, const TunedDrives& found, Page* page) {
  const TunedSettings& s = found.settings;
  page->Section(name);
  page->Row("settings", fmt::format("{} a request, {} in flight, at most {} submitted at once, {}",
                                    FormatBytes(s.request), s.depth, s.batch, Name(s.engine)));
  page->Row("rates", fmt::format("{} GB/s read, {} written, {} mixed", Rate(s.read_rate),
                                 Rate(s.write_rate), Rate(s.mixed_rate)));
  page->Row("untuned", fmt::format("{} GB/s mixed", Rate(found.untuned_rate)));
  page->Row("checked",
            fmt::format("{} were read back, and every byte was right", FormatBytes(found.checked)));
  page->Row("search", fmt::format("{} measurements, {} written{}", found.tuning.measurements,
                                  FormatBytes(found.written),
                                  found.cut_short ? "; it would have gone on: more --seconds or "
                                                    "--max-write may find better ones"
                                                  : ""));
}

// For a model whose states are all on these drives.
std::string WhatItBuys(const TunedDrives& set) {
  constexpr double kParameters = 7e9;
  constexpr double kBytes = 24;  // of a parameter's states, read and written
  const double seconds = kParameters * kBytes / set.settings.mixed_rate;
  const double ratio = set.settings.mixed_rate / set.untuned_rate;
  std::string text = fmt::format("all of whose states are here: a step moves {:.0f} GB in {} s",
                                 kParameters * kBytes / 1e9, FigureText(std::round(seconds)));
  if (std::abs(ratio - 1) < kSame) return text + ", as it would untuned";
  return text + fmt::format("; untuned it would take {} s, {:.2f} times as long",
                            FigureText(std::round(seconds * ratio)), ratio);
}

}  // namespace

Json TuneJson(const TuneResult& result, const std::string& file) {
  Json json = {{"sluice_tune", kKeysVersion},
               {"file", file},
               {"tuned", Json::parse(TunedText(result.ForFile()))},
               {"seconds", result.seconds},
               {"paths", Json::array()},
               {"set", result.together ? FoundJson(*result.together) : Json()},
               {"warnings", WarningsOf(result)},
               {"ds_config", DsConfig(result.set().settings, file)}};
  for (const TuneResult::Path& path : result.paths) {
    json["paths"].push_back({{"path", path.plan.path},
                             {"file_bytes", path.plan.file.value()},
                             {"found", FoundJson(path.found)}});
  }
  return json;
}

std::string TunePicture(const TunedDrives& found) {
  const Tuning& tuning = found.tuning;
  std::map<Bytes, std::map<Bytes, double>> shares;  // by request, by bytes in flight
  std::map<Bytes, double> by_in_flight;
  for (const auto& [point, share] : tuning.tried) {
    double& cell = shares[point.request][point.in_flight];
    cell = std::max(cell, share);
    by_in_flight[point.in_flight] = std::max(by_in_flight[point.in_flight], share);
  }
  std::string text = "  % of the best, by size of a request and bytes in flight\n";
  text += fmt::format("  {:>10}", "");
  for (const auto& [in_flight, share] : by_in_flight)
    text += fmt::format(" {:>8}", FormatBytes(in_flight));
  for (const auto& [request, row] : shares) {
    text += fmt::format("\n  {:>10}", FormatBytes(request));
    for (const auto& [in_flight, unused] : by_in_flight) {
      const auto at = row.find(in_flight);
      const bool best = request == tuning.best.request && in_flight == tuning.best.in_flight;
      std::string cell = at == row.end() ? "." : fmt::format("{:.0f}", 100 * at->second);
      if (best) cell = fmt::format("[{}]", cell);
      text += fmt::format(" {:>8}", cell);
    }
  }
  text += "\n\n  GB/s mixed, by bytes in flight\n";
  for (const auto& [in_flight, share] : by_in_flight) {
    const int columns =
        std::clamp(static_cast<int>(std::lround(kBarColumns * share)), 1, kBarColumns * 5 / 4);
    text += fmt::format("  {:>10} {:<{}} {}\n", FormatBytes(in_flight),
                        std::string(static_cast<size_t>(columns), '#'), kBarColumns,
                        Rate(share * found.settings.mixed_rate));
  }
  return text;
}

std::string TunePage(const TuneResult& result, const std::string& file) {
  Page page;
  std::string text;
  for (const TuneResult::Path& path : result.paths) {
    Page one;
    AddFound(path.plan.path, path.found, &one);
    text += one.Text() + "\n" + TunePicture(path.found) + "\n";
  }
  if (result.together) AddFound("All together", *result.together, &page);
  page.List("Will hurt", WarningsOf(result));
  page.Section("What it buys");
  page.Row("a model of 7B", WhatItBuys(result.set()));
  page.Section("To use it");
  page.Row("file", file);
  page.Row("try it", fmt::format("sluice bench io {} --tuned {}", result.paths[0].plan.path, file));
  page.Row("plan", fmt::format("sluice plan 7B --tuned {}", file));
  page.Row("took", fmt::format("{:.0f} s", result.seconds));
  text += page.Text();
  const Json config = DsConfig(result.set().settings, file);
  for (const auto& [key, who] : {std::pair("sluice", "Sluice"), std::pair("aio", "DeepSpeed")}) {
    const std::string section = Json{{key, config[key]}}.dump(2);
    text += fmt::format("\nIn a ds_config.json, for {}\n{}\n", who,
                        section.substr(2, section.size() - 4));  // what is in the braces
  }
  return text;
}

}  // namespace sluice::tools
