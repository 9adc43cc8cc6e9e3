#include "tools/run_page.h"

#include <algorithm>
#include <vector>

#include "fmt/format.h"
#include "tools/html.h"
#include "tools/output.h"
#include "tools/run_advice.h"
#include "tools/run_style.h"
#include "tools/run_timeline.h"

namespace sluice::tools {

namespace {

struct Tile {
  std::string name;
  std::string value;
  std::string note;
};

std::string TilesHtml(const RunReport& report) {
  std::vector<Tile> tiles;
  const std::optional<double> step = report.Number("steps.seconds.p50");
  if (step) {
    tiles.push_back(
        {"a step", TimeText(*step),
         fmt::format("the median of {:.0f}; 99% within {}", report.NumberOr0("steps.count"),
                     TimeText(report.NumberOr0("steps.seconds.p99")))});
  }
  if (const auto floor = report.Number("steps.floor_seconds.total"))
    tiles.push_back({"its floor", TimeText(*floor), "by the rates measured last"});
  if (const auto efficiency = report.Number("steps.efficiency"))
    tiles.push_back({"efficiency", fmt::format("{:.2f}", *efficiency), "floor over step, paired"});
  const double all = report.NumberOr0("waited_for.of_seconds");
  double waited = 0;
  for (const char* what : {"fetch", "update", "gradients", "ranks", "drive"})
    waited += report.NumberOr0(fmt::format("waited_for.seconds.{}", what));
  if (all > 0) tiles.push_back({"waited", ShareText(waited / all), "of the time, for anything"});
  const double steps = report.NumberOr0("counters.steps");
  if (steps > 0) {
    const double moved = report.NumberOr0("counters.nvme_read_bytes") +
                         report.NumberOr0("counters.nvme_write_bytes");
    tiles.push_back({"to and from drives", SizeText(moved / steps), "a step"});
  }
  std::string html = "<dl class=\"tiles\">";
  for (const Tile& tile : tiles) {
    html += fmt::format("<div><dt>{}</dt><dd>{}<small>{}</small></dd></div>", tile.name,
                        Escaped(tile.value), Escaped(tile.note));
  }
  return html + "</dl>\n";
}

std::string AdviceHtml(const RunReport& report) {
  const std::vector<Advice> list = AdviceFor(report);
  std::string html = "<h2>What to change</h2>\n";
  if (list.empty()) return html + "<p>Nothing, by these figures.</p>\n";
  html += "<ol class=\"advice\">\n";
  for (const Advice& advice : list) {
    html +=
        fmt::format("<li><strong>{}</strong> {}</li>\n", Escaped(advice.what), Escaped(advice.why));
  }
  return html + "</ol>\n";
}

bool IsPlain(const Json& value) { return !value.is_object() && !value.is_array(); }

std::string PlainText(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

// Every value, by its key with dots between; what a list holds on one line if it can be.
void AddFigures(const std::string& key, const Json& value, std::string* html) {
  std::string text;
  if (value.is_object() && !value.empty()) {
    for (const auto& [name, inner] : value.items())
      AddFigures(key.empty() ? name : fmt::format("{}.{}", key, name), inner, html);
    return;
  }
  if (value.is_array() && !value.empty()) {
    bool plain = true;
    for (const Json& inner : value) plain = plain && IsPlain(inner);
    if (!plain) {
      for (size_t i = 0; i < value.size(); ++i)
        AddFigures(fmt::format("{}[{}]", key, i), value[i], html);
      return;
    }
    for (const Json& inner : value) {
      if (!text.empty()) text += ", ";
      text += PlainText(inner);
    }
  } else {
    text = PlainText(value);
  }
  *html += fmt::format("<tr><td>{}</td><td>{}</td></tr>\n", Escaped(key), NameHtml(text));
}

std::string AllHtml(const RunReport& report) {
  std::string html =
      "<h2>All figures</h2>\n<p>What each means: docs/api.md.</p>\n<details><summary>Show "
      "them</summary>\n<table class=\"all\"><tbody>\n";
  AddFigures("", report.whole(), &html);
  return html + "</tbody></table></details>\n";
}

}  // namespace

std::string RunPageHtml(const RunReport& report, const RunTrace* trace) {
  const double parameters = report.NumberOr0("parameters");
  const std::string title = fmt::format(
      "A run of {} parameters", CountText(static_cast<int64_t>(std::clamp(parameters, 0.0, 9e18))));
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\n<meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\"/>\n<meta http-equiv=\"Content-Security-"
      "Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n<title>{}</title>\n"
      "<style>{}</style></head>\n<body><main>\n<h1>{}</h1>\n<p class=\"soft\">{}</p>\n",
      Escaped(title), kRunStyle, Escaped(title),
      NameHtml(fmt::format("{}; {}; {}", report.Word("device"), report.Word("engine"),
                           report.Word("executor"))));
  html += fmt::format("<p class=\"lead\">{}</p>\n", Escaped(report.Word("waited_for.words")));
  html += TilesHtml(report) + AdviceHtml(report) + WaitsHtml(report);
  if (trace != nullptr) html += "<h2>What runs when</h2>\n" + TimelineHtml(*trace);
  html += StepsHtml(report) + FloorHtml(report) + TiersHtml(report) + DrivesHtml(report) +
          LatenciesHtml(report) + AllHtml(report);
  return html + "</main></body></html>\n";
}

}  // namespace sluice::tools
