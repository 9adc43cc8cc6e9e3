// The sections of the page of a run.

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "tools/html.h"
#include "tools/run_advice.h"
#include "tools/run_page.h"

namespace sluice::tools {

namespace {

struct Part {
  std::string name;
  double amount = 0;
  const char* colour = "kr";
};

// A bar of parts side by side; `all` is its whole width.
std::string BarHtml(const std::vector<Part>& parts, double all, const std::string& words) {
  std::string html =
      fmt::format("<div class=\"bar\" role=\"img\" aria-label=\"{}\">", Escaped(words));
  for (const Part& part : parts) {
    if (part.amount <= 0 || all <= 0) continue;
    html += fmt::format("<span class=\"{}\" style=\"width:{}\" title=\"{}\"></span>", part.colour,
                        WidthText(part.amount / all), Escaped(part.name));
  }
  return html + "</div>\n";
}

std::string LegendHtml(const std::vector<std::pair<const char*, std::string>>& entries) {
  std::string html = "<ul class=\"legend\">";
  for (const auto& [colour, text] : entries)
    html += fmt::format("<li><i class=\"{}\"></i>{}</li>", colour, Escaped(text));
  return html + "</ul>\n";
}

// `name` and `under` are HTML.
std::string RowHtml(const std::string& name, const std::vector<Part>& parts, double all,
                    const std::string& words, const std::string& under) {
  return fmt::format("<div class=\"row\"><div class=\"name\">{}</div>{}{}</div>\n", name,
                     BarHtml(parts, all, words),
                     under.empty() ? "" : fmt::format("<div class=\"under note\">{}</div>", under));
}

std::string TableHtml(const std::vector<std::string>& heads,
                      const std::vector<std::vector<std::string>>& rows) {
  std::string html = "<div class=\"scroll\"><table><thead><tr>";
  for (const std::string& head : heads)
    html += fmt::format("<th scope=\"col\">{}</th>", Escaped(head));
  html += "</tr></thead><tbody>\n";
  for (const std::vector<std::string>& row : rows) {
    html += fmt::format("<tr><th scope=\"row\">{}</th>", row.front());  // HTML
    for (size_t i = 1; i < row.size(); ++i) html += fmt::format("<td>{}</td>", Escaped(row[i]));
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
}

// A row of how often, p50, p99 and the most.
std::vector<std::string> TimesRow(const std::string& name, const Json& object,
                                  const std::string& path) {
  const auto figure = [&](const char* key) {
    return RunReport::NumberAt(object, path + "." + key).value_or(0);
  };
  return {name, fmt::format("{:.0f}", figure("count")), TimeText(figure("p50") / 1e9),
          TimeText(figure("p99") / 1e9), TimeText(figure("max") / 1e9)};
}

}  // namespace

std::string StepsHtml(const RunReport& report) {
  const std::vector<std::optional<double>> seconds = report.Numbers("steps.latest_seconds");
  const std::vector<std::optional<double>> efficiencies =
      report.Numbers("steps.latest_efficiencies");
  double longest = 0;
  for (const auto& one : seconds) longest = std::max(longest, one.value_or(0));
  if (longest <= 0) return "";
  std::string drawn;
  std::vector<double> known;  // efficiencies
  for (size_t i = 0; i < seconds.size(); ++i) {
    const double took = seconds[i].value_or(0);
    const double height = PercentOf(took / longest);
    const bool has_floor = i < efficiencies.size() && efficiencies[i];
    drawn += fmt::format(
        "<rect x=\"{}\" y=\"{:.2f}\" width=\"8\" height=\"{:.2f}\"><title>{}{}</title></rect>",
        10 * i + 1, 100 - height, height, TimeText(took),
        has_floor ? fmt::format(", efficiency {:.2f}", *efficiencies[i]) : "");
    if (!has_floor) continue;
    known.push_back(*efficiencies[i]);
    const double floor = PercentOf(*efficiencies[i] * took / longest);
    drawn += fmt::format("<rect class=\"floor\" x=\"{}\" y=\"{:.2f}\" width=\"10\" height=\"2\"/>",
                         10 * i, std::min(98.0, 100 - floor));
  }
  std::string floors;
  if (!known.empty()) {
    const auto [least, most] = std::ranges::minmax(known);
    floors =
        fmt::format(" Their efficiencies, floor over step, are {:.2f} to {:.2f}.", least, most);
  }
  std::string html = fmt::format(
      "<h2>Steps</h2>\n<p>The latest {}, the longest {}.{}</p>\n<svg class=\"steps\" viewBox=\"0 0 "
      "{} 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"The time of each of the "
      "latest {} steps\">{}</svg>\n",
      seconds.size(), TimeText(longest), floors, 10 * seconds.size(), seconds.size(), drawn);
  if (!known.empty()) html += LegendHtml({{"k0", "measured"}, {"k1", "its floor"}});
  return html;
}

std::string WaitsHtml(const RunReport& report) {
  const double all = report.NumberOr0("waited_for.of_seconds");
  constexpr std::array<std::array<const char*, 3>, 5> kWaits = {
      {{"drive", "drives", "k0"},
       {"update", "updates", "k1"},
       {"fetch", "units on their way to HBM", "k2"},
       {"gradients", "gradients", "k3"},
       {"ranks", "other ranks", "k4"}}};
  std::vector<Part> parts;
  std::vector<std::pair<const char*, std::string>> legend;
  double waited = 0;
  for (const auto& [key, name, colour] : kWaits) {
    const double seconds = report.NumberOr0(fmt::format("waited_for.seconds.{}", key));
    parts.push_back({.name = name, .amount = seconds, .colour = colour});
    waited += seconds;
    if (seconds <= 0) continue;
    legend.emplace_back(colour, fmt::format("{} {} ({})", name, TimeText(seconds),
                                            ShareText(all > 0 ? seconds / all : 0)));
  }
  const double rest = std::max(0.0, all - waited);
  parts.push_back({.name = "not waited", .amount = rest, .colour = "kr"});
  legend.emplace_back(
      "kr", fmt::format("not waited {} ({})", TimeText(rest), ShareText(all > 0 ? rest / all : 0)));
  return "<h2>What was waited for</h2>\n" +
         fmt::format("<p>Of {}, from the first acquisition or step to the last.</p>\n",
                     TimeText(all)) +
         BarHtml(parts, all, report.Word("waited_for.words")) + LegendHtml(legend);
}

std::string FloorHtml(const RunReport& report) {
  const std::optional<FloorParts> floor = PartsOf(report);
  if (!floor) return "";
  const double measured = report.NumberOr0("steps.seconds.p50");
  const double all = std::max(floor->total, measured);
  std::string html =
      "<h2>The floor, term by term</h2>\n<p>The shortest time that a step can take by the rates "
      "measured last. What is beside each other overlaps, so the longest counts.</p>\n";
  const auto add = [&](const char* title, const std::vector<FloorParts::Term>& terms) {
    const auto longest = std::ranges::max_element(terms, {}, &FloorParts::Term::seconds);
    html += fmt::format("<h3>{}</h3>\n", title);
    for (auto term = terms.begin(); term != terms.end(); ++term) {
      const std::string text = fmt::format("{} {}{}", term->name, TimeText(term->seconds),
                                           term == longest ? ", which counts" : "");
      html += RowHtml(Escaped(text), {{term->name, term->seconds, term == longest ? "k0" : "kr"}},
                      all, text, Escaped(term->sum));
    }
  };
  add("While backward runs", floor->backward);
  add("While forward runs", floor->forward);
  html += "<h3>Together</h3>\n";
  const auto together = [&](const std::string& name, double seconds, const char* colour) {
    const std::string text = fmt::format("{} {}", name, TimeText(seconds));
    html += RowHtml(text, {{name, seconds, colour}}, all, text, "");
  };
  together("floor", floor->total, "k1");
  if (measured > 0) together("step, median", measured, "k0");
  return html;
}

std::string TiersHtml(const RunReport& report) {
  struct Kind {
    const char* key;
    const char* name;
    const char* colour;
  };
  struct Tier {
    const char* key;
    const char* name;
    std::vector<Kind> kinds;
  };
  const Tier tiers[] = {{"hbm",
                         "HBM",
                         {{"resident_bytes", "units that stay", "k0"},
                          {"cache_bytes", "units that come and go", "k2"},
                          {"gradients_bytes", "gradients", "k3"},
                          {"states_bytes", "states", "k1"}}},
                        {"pinned",
                         "pinned RAM",
                         {{"params_bytes", "parameters", "k0"},
                          {"gradients_bytes", "gradients", "k3"},
                          {"states_bytes", "states", "k1"}}},
                        {"nvme",
                         "NVMe",
                         {{"params_bytes", "parameters", "k0"},
                          {"gradients_bytes", "gradients", "k3"},
                          {"states_bytes", "states", "k1"}}}};
  std::string html = "<h2>Tiers against their budgets</h2>\n";
  for (const Tier& tier : tiers) {
    const double planned = report.NumberOr0(fmt::format("planned_bytes.{}", tier.key));
    const std::optional<double> budget = report.Number(fmt::format("budgets_bytes.{}", tier.key));
    const std::optional<double> now = report.Number(fmt::format("bytes_now.{}", tier.key));
    std::vector<Part> parts;
    std::vector<std::pair<const char*, std::string>> legend;
    double known = 0;
    for (const Kind& kind : tier.kinds) {
      const double bytes = report.NumberOr0(fmt::format("{}.{}", tier.key, kind.key));
      if (bytes <= 0) continue;
      parts.push_back({.name = kind.name, .amount = bytes, .colour = kind.colour});
      legend.emplace_back(kind.colour, fmt::format("{} {}", kind.name, SizeText(bytes)));
      known += bytes;
    }
    if (planned > known) {
      parts.push_back({.name = "buffers and padding", .amount = planned - known, .colour = "kr"});
      legend.emplace_back("kr", fmt::format("buffers and padding {}", SizeText(planned - known)));
    }
    const std::string text = fmt::format("{}: {} of {}", tier.name, SizeText(now.value_or(planned)),
                                         budget ? SizeText(*budget) : std::string("any"));
    html += RowHtml(Escaped(text), parts, std::max(planned, budget.value_or(planned)), text,
                    legend.empty() ? "" : LegendHtml(legend));
  }
  return html;
}

std::string DrivesHtml(const RunReport& report) {
  const std::vector<const Json*> drives = report.Objects("drives");
  const double seconds = report.NumberOr0("waited_for.of_seconds");
  if (drives.empty()) return "";
  std::vector<std::vector<std::string>> rows;
  double bytes = 0;
  for (const Json* drive : drives) {
    const auto figure = [drive](const char* key) {
      return RunReport::NumberAt(*drive, key).value_or(0);
    };
    const auto rate = [seconds](double of) {
      return seconds > 0 ? RateText(of / seconds) : std::string("-");
    };
    bytes += figure("read_bytes") + figure("write_bytes");
    rows.push_back({NameHtml(RunReport::WordAt(*drive, "path")), SizeText(figure("read_bytes")),
                    rate(figure("read_bytes")), TimeText(figure("read_ns.p50") / 1e9),
                    SizeText(figure("write_bytes")), rate(figure("write_bytes")),
                    TimeText(figure("write_ns.p50") / 1e9),
                    fmt::format("{:.0f}", figure("failed"))});
  }
  std::string html = "<h2>Drives</h2>\n";
  const double limit = report.NumberOr0("steps.rates.nvme_bytes");
  if (limit > 0 && seconds > 0) {
    html += fmt::format(
        "<p>Together {}, over all of the time; {} was measured of reads and writes mixed, which is "
        "{}.</p>\n",
        RateText(bytes / seconds), RateText(limit), ShareText(bytes / seconds / limit));
  }
  return html +
         TableHtml({"drive", "read", "rate", "half take", "written", "rate", "half take", "failed"},
                   rows);
}

std::string LatenciesHtml(const RunReport& report) {
  const Json empty = Json::object();
  const auto found = report.report().find("histograms_ns");
  const Json& times = found == report.report().end() ? empty : *found;
  constexpr std::array<std::array<const char*, 2>, 5> kTimes = {
      {{"acquire", "a unit, till it is there"},
       {"update_chunk", "a chunk's update"},
       {"queue_wait", "a transfer, till the drive takes it"},
       {"read", "a read, from then on"},
       {"write", "a write, from then on"}}};
  std::vector<std::vector<std::string>> rows;
  rows.reserve(kTimes.size());
  for (const auto& [key, name] : kTimes) rows.push_back(TimesRow(name, times, key));
  for (const Json* drive : report.Objects("drives")) {
    if (report.Objects("drives").size() < 2) break;
    const std::string path = NameHtml(RunReport::WordAt(*drive, "path"));
    rows.push_back(TimesRow(path + ": queue", *drive, "queue_wait_ns"));
    rows.push_back(TimesRow(path + ": read", *drive, "read_ns"));
    rows.push_back(TimesRow(path + ": write", *drive, "write_ns"));
  }
  return "<h2>How long things take</h2>\n" +
         TableHtml({"", "times", "half within", "99% within", "longest"}, rows);
}

}  // namespace sluice::tools
