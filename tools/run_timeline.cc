#include "tools/run_timeline.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "tools/html.h"

namespace sluice::tools {

namespace {

constexpr size_t kBins = 400;
constexpr size_t kBlocksMax = 200;  // drawn one by one
constexpr double kLabelled = 0.08;  // of the width, that has room for a word
constexpr std::string_view kCompute = "compute";

using Span = RunTrace::Span;

// Those of the track that are under way in the window, cut to it, by their begin.
std::vector<Span> Inside(const RunTrace::Track& track, const StepWindow& window) {
  std::vector<Span> spans;
  for (const Span& span : track.spans) {
    const double begin = std::max(span.begin_us, window.begin_us);
    const double end = std::min(span.end_us, window.end_us);
    if (begin < end) spans.push_back({.begin_us = begin, .end_us = end, .name = span.name});
  }
  std::ranges::sort(spans, {}, &Span::begin_us);
  return spans;
}

// Of the window, how much has any of `spans`.
double BusyShare(const std::vector<Span>& spans, const StepWindow& window) {
  double busy = 0;
  double till = window.begin_us;
  for (const Span& span : spans) {
    busy += std::max(0.0, span.end_us - std::max(till, span.begin_us));
    till = std::max(till, span.end_us);
  }
  return busy / (window.end_us - window.begin_us);
}

size_t MostAtATime(const std::vector<Span>& spans) {
  std::vector<std::pair<double, int>> edges;
  for (const Span& span : spans) {
    edges.emplace_back(span.begin_us, 1);
    edges.emplace_back(span.end_us, -1);
  }
  std::ranges::sort(edges);  // at one time, ends come first
  int now = 0;
  int most = 0;
  for (const auto& [at, change] : edges) most = std::max(most, now += change);
  return static_cast<size_t>(most);
}

// How many are under way, on average, in each of kBins equal parts.
std::vector<double> Heights(const std::vector<Span>& spans, const StepWindow& window) {
  const double width = (window.end_us - window.begin_us) / static_cast<double>(kBins);
  std::vector<double> heights(kBins, 0.0);
  const auto bin = [&](double at) {
    const double place = (at - window.begin_us) / width;
    return std::min(kBins - 1, static_cast<size_t>(std::max(0.0, place)));
  };
  for (const Span& span : spans) {
    for (size_t i = bin(span.begin_us); i <= bin(span.end_us); ++i) {
      const double low = window.begin_us + static_cast<double>(i) * width;
      const double part = std::min(span.end_us, low + width) - std::max(span.begin_us, low);
      heights[i] += std::max(0.0, part) / width;
    }
  }
  return heights;
}

std::string AreaHtml(const std::vector<Span>& spans, const StepWindow& window, size_t most,
                     const std::string& words) {
  std::string path = "M0,100";
  for (const double height : Heights(spans, window)) {
    const double share = std::min(1.0, height / static_cast<double>(std::max<size_t>(most, 1)));
    path += fmt::format("V{:.1f}h1", 100 - 100 * share);
  }
  return fmt::format(
      "<svg class=\"area\" viewBox=\"0 0 {} 100\" preserveAspectRatio=\"none\" role=\"img\" "
      "aria-label=\"{}\"><path d=\"{}V100Z\"/></svg>",
      kBins, Escaped(words), path);
}

std::string BlocksHtml(const RunTrace& trace, const std::vector<Span>& spans,
                       const StepWindow& window, const std::string& words) {
  const double length = window.end_us - window.begin_us;
  std::string html =
      fmt::format("<div class=\"blocks\" role=\"img\" aria-label=\"{}\">", Escaped(words));
  for (size_t i = 0; i < std::min(spans.size(), kBlocksMax); ++i) {
    const Span& span = spans[i];
    const std::string name = Escaped(trace.names[span.name]);
    const double share = (span.end_us - span.begin_us) / length;
    html += fmt::format(
        "<span class=\"block n{}\" style=\"left:{};width:{}\" title=\"{}: {}\">{}</span>",
        span.name % 4, WidthText((span.begin_us - window.begin_us) / length), WidthText(share),
        name, TimeText((span.end_us - span.begin_us) / 1e6), share > kLabelled ? name : "");
  }
  return html + "</div>";
}

// "forward 0.21 s, backward 0.70 s": by name, in the order of their first.
std::string SumsByName(const RunTrace& trace, const std::vector<Span>& spans) {
  std::vector<std::pair<uint32_t, double>> sums;
  for (const Span& span : spans) {
    auto sum = std::ranges::find(sums, span.name, &std::pair<uint32_t, double>::first);
    if (sum == sums.end()) sum = sums.insert(sums.end(), {span.name, 0.0});
    sum->second += (span.end_us - span.begin_us) / 1e6;
  }
  std::string text;
  for (const auto& [name, seconds] : sums)
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", trace.names[name], TimeText(seconds));
  return text;
}

std::string RowHtml(const RunTrace& trace, const RunTrace::Track& track, const StepWindow& window) {
  const std::vector<Span> spans = Inside(track, window);
  if (spans.empty()) return "";
  const size_t most = MostAtATime(spans);
  const std::string busy = ShareText(BusyShare(spans, window));
  const bool blocks = track.name == kCompute;
  const std::string note = blocks ? SumsByName(trace, spans)
                                  : fmt::format("{} of the time, at most {} at once", busy, most);
  const std::string words = fmt::format("{}: {}", track.name, note);
  return fmt::format(
      "<div class=\"track\"><div class=\"label\">{} <span class=\"note\">{}</span></div>{}</div>\n",
      NameHtml(track.name), Escaped(note),
      blocks ? BlocksHtml(trace, spans, window, words) : AreaHtml(spans, window, most, words));
}

}  // namespace

StepWindow WindowOf(const RunTrace& trace) {
  std::vector<double> ends;
  StepWindow all{.begin_us = HUGE_VAL, .end_us = -HUGE_VAL};
  for (const RunTrace::Track& track : trace.tracks) {
    for (const Span& span : track.spans) {
      all.begin_us = std::min(all.begin_us, span.begin_us);
      all.end_us = std::max(all.end_us, span.end_us);
      if (track.name == kCompute && trace.names[span.name] == "step") ends.push_back(span.end_us);
    }
  }
  std::ranges::sort(ends);
  std::vector<StepWindow> steps;
  for (size_t i = 1; i < ends.size(); ++i) {
    if (ends[i - 1] < ends[i])
      steps.push_back({.begin_us = ends[i - 1], .end_us = ends[i], .is_step = true});
  }
  if (steps.empty()) {
    if (all.end_us <= all.begin_us) all.end_us = all.begin_us + 1;
    return all;
  }
  const auto middle = steps.begin() + static_cast<std::ptrdiff_t>((steps.size() - 1) / 2);
  std::ranges::nth_element(steps, middle, {},
                           [](const StepWindow& w) { return w.end_us - w.begin_us; });
  return *middle;
}

std::string TimelineHtml(const RunTrace& trace) {
  const StepWindow window = WindowOf(trace);
  const double seconds = (window.end_us - window.begin_us) / 1e6;
  std::string html = fmt::format(
      "<p>{} Height is how many were under way; the most in the step is the full height.</p>\n",
      window.is_step
          ? fmt::format("The step of {}, which is the median of those in the trace, from where "
                        "the last one's call ended.",
                        TimeText(seconds))
          : fmt::format("The whole trace, {}: it has no two steps.", TimeText(seconds)));
  html += "<div class=\"timeline\">\n";
  for (const RunTrace::Track& track : trace.tracks) html += RowHtml(trace, track, window);
  html += "<div class=\"axis\" aria-hidden=\"true\">";
  for (int i = 0; i <= 4; ++i)
    html += fmt::format("<span>{}</span>", TimeText(std::round(seconds * i / 4 * 1e6) / 1e6));
  return html + "</div></div>\n";
}

}  // namespace sluice::tools
