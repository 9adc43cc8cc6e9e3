#include "tools/run_advice.h"

#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "tools/html.h"

namespace sluice::tools {

namespace {

constexpr double kMuch = 0.05;  // of the time, that is worth a word

using List = std::vector<Advice>;

double Waited(const RunReport& report, std::string_view what) {
  return report.NumberOr0(fmt::format("waited_for.share.{}", what));
}

// What a step moves between drives and pinned memory that more of it would save: states and
// gradients that live there are read and written once, so a byte more saves two.
double SparedMost(const RunReport& report) {
  return report.NumberOr0("nvme.states_bytes") + report.NumberOr0("nvme.gradients_bytes");
}

void OnFailure(const RunReport& report, List* list) {
  const std::string failure = report.Word("failure");
  if (!failure.empty()) list->push_back({"The run failed.", failure});
  for (const Json* drive : report.Objects("drives")) {
    const double failed = RunReport::NumberAt(*drive, "failed").value_or(0);
    if (failed == 0) continue;
    list->push_back({fmt::format("Look at the drive of {}.", RunReport::WordAt(*drive, "path")),
                     fmt::format("{:.0f} of its transfers failed.", failed)});
  }
}

// How much more pinned memory takes drives out of what the floor waits for.
void OnPinned(const RunReport& report, List* list) {
  const double spared_most = SparedMost(report);
  const std::optional<FloorParts> floor = PartsOf(report);
  const double rate = report.NumberOr0("steps.rates.nvme_bytes");
  const double now = report.NumberOr0("planned_bytes.pinned");
  const double moved = report.NumberOr0("step_traffic.nvme_read_bytes") +
                       report.NumberOr0("step_traffic.nvme_write_bytes");
  const bool waits = Waited(report, "drive") > kMuch;
  const double io = report.NumberOr0("steps.floor_seconds.io");
  double others = 0;  // of the same part of the floor
  if (floor) {
    for (const FloorParts::Term& term : floor->forward) {
      if (term.name != "drives") others = std::max(others, term.seconds);
    }
  }
  const bool io_counts = floor && io > others;
  if (spared_most <= 0 || (!waits && !io_counts)) return;
  const double all = std::min(2 * spared_most, moved);
  std::string why = fmt::format("A step moves {} to and from drives", SizeText(moved));
  if (waits)
    why +=
        fmt::format(", and {} of the time was waited for them", ShareText(Waited(report, "drive")));
  if (io_counts && rate > 0) {
    const double spared = std::min(all, (io - others) * rate);
    const double more = spared / 2;
    why += fmt::format(". {} more removes {} of that, {} of a step at the rate measured{}",
                       SizeText(more), SizeText(spared), TimeText(spared / rate),
                       spared < all ? "; from there on drives are not what the floor waits for"
                                    : "; nothing of the states is on drives then");
    list->push_back(
        {fmt::format("Give pinned RAM {} instead of {}.", SizeText(now + more), SizeText(now)),
         why + ". Another drive would add its rate."});
    return;
  }
  list->push_back(
      {fmt::format("Give pinned RAM more than {}.", SizeText(now)),
       why +
           fmt::format(
               ". Each byte more removes two from that, and {} more all of it; another drive adds "
               "its rate.",
               SizeText(spared_most))});
}

void OnWaits(const RunReport& report, List* list) {
  const double updates = Waited(report, "update");
  const double workers = report.NumberOr0("cores.workers");
  const double cores = report.NumberOr0("cores.allowed");
  if (updates > kMuch) {
    list->push_back(
        {workers + 1 < cores ? "Give updates more workers." : "Updates need more cores.",
         fmt::format("{} of the time was waited for updates, by {:.0f} worker{} of {:.0f} cores.",
                     ShareText(updates), workers, workers == 1 ? "" : "s", cores)});
  }
  const double fetches = Waited(report, "fetch");
  const double acquires = report.NumberOr0("counters.acquires");
  const double misses = report.NumberOr0("counters.demand_misses");
  if (fetches > kMuch || (acquires > 0 && misses > acquires / 100)) {
    list->push_back(
        {fmt::format("Give HBM more than {}.", SizeText(report.NumberOr0("planned_bytes.hbm"))),
         fmt::format("{} of the time was waited for units on their way there; {:.0f} of {:.0f} "
                     "acquisitions were not planned for.",
                     ShareText(fetches), misses, acquires)});
  }
  const double departures = report.NumberOr0("counters.trace_departures");
  if (departures > report.NumberOr0("counters.steps")) {
    list->push_back(
        {"Acquire units in the same order each step, or give other orders other keys.",
         fmt::format("{:.0f} acquisitions were out of the order that was learned.", departures)});
  }
  if (Waited(report, "gradients") > kMuch) {
    list->push_back({"Gradients hold up the step.",
                     fmt::format("{} of the time was waited for their copies and sums.",
                                 ShareText(Waited(report, "gradients")))});
  }
  if (Waited(report, "ranks") > kMuch) {
    list->push_back(
        {"Look at the reports of the other ranks.",
         fmt::format("{} of the time was waited for them.", ShareText(Waited(report, "ranks")))});
  }
}

void OnDrives(const RunReport& report, List* list) {
  const std::string engine = report.Word("engine");
  if (engine.starts_with("threads") && report.NumberOr0("counters.nvme_reads") > 0)
    list->push_back(
        {"Let the kernel do the I/O: `sluice doctor DIR` says how.", "It is by " + engine + "."});
  const double spilled = report.NumberOr0("nvme.gradients_bytes");
  if (spilled > 0) {
    list->push_back(
        {fmt::format("{} more pinned RAM would keep gradients there.", SizeText(spilled)),
         "They are written to drives in backward, and read in the update."});
  }
  const Json* slow = nullptr;
  double fast_ns = 0;
  double slow_ns = 0;
  for (const Json* drive : report.Objects("drives")) {
    const double ns = RunReport::NumberAt(*drive, "read_ns.p50").value_or(0);
    if (ns <= 0) continue;
    fast_ns = fast_ns == 0 ? ns : std::min(fast_ns, ns);
    if (ns > slow_ns) slow = drive;
    slow_ns = std::max(slow_ns, ns);
  }
  if (slow != nullptr && slow_ns > 2 * fast_ns) {
    list->push_back({fmt::format("Give {} less, by its rate.", RunReport::WordAt(*slow, "path")),
                     fmt::format("Half of its reads take over {}; those of the fastest drive {}.",
                                 TimeText(slow_ns / 1e9), TimeText(fast_ns / 1e9))});
  }
  const std::optional<double> huge = report.Number("pinned_huge_page_bytes");
  const double pinned = report.NumberOr0("bytes_now.pinned");
  if (huge && pinned > 0 && *huge < 0.9 * pinned) {
    list->push_back({"Let pinned RAM lie on huge pages: `sluice doctor` says how.",
                     fmt::format("{} of {} do.", SizeText(*huge), SizeText(pinned))});
  }
}

void OnSpeed(const RunReport& report, List* list) {
  const std::optional<double> efficiency = report.Number("steps.efficiency");
  double waited = 0;
  for (const char* what : {"fetch", "update", "gradients", "ranks", "drive"})
    waited += Waited(report, what);
  if (efficiency && *efficiency < 0.8 && waited < 1 - *efficiency - kMuch) {
    list->push_back(
        {"Look at what else runs on these cores, and at the threads that compute.",
         fmt::format("Steps are {:.2f} of their floor, but only {} of the time was waited: what "
                     "computes takes longer than it did alone.",
                     *efficiency, ShareText(waited))});
  }
  const double steps = report.NumberOr0("counters.steps");
  const double skipped = report.NumberOr0("counters.steps_skipped");
  if (skipped > kMuch * (steps + skipped)) {
    list->push_back({"Use bf16, or a lower loss scale.",
                     fmt::format("{:.0f} of {:.0f} steps were skipped for overflow.", skipped,
                                 steps + skipped)});
  }
  if (!efficiency && report.NumberOr0("steps.count") > 0) {
    list->push_back({"Let the floor be known: set_rates() with what sluice.probe measures.",
                     "Without rates nobody knows how fast a step could be on this machine."});
  }
  const double dropped = report.NumberOr0("trace_spans_dropped");
  if (dropped > 0) {
    list->push_back({"Give the trace more room (trace_spans).",
                     fmt::format("{:.0f} spans were dropped.", dropped)});
  }
}

}  // namespace

std::optional<FloorParts> PartsOf(const RunReport& report) {
  const std::optional<double> total = report.Number("steps.floor_seconds.total");
  if (!total) return std::nullopt;
  const auto term = [&report](const char* name) {
    return report.NumberOr0(fmt::format("steps.floor_seconds.{}", name));
  };
  FloorParts parts;
  parts.total = *total;
  const bool shared = report.Flag("steps.rates.shared_cores");
  if (shared) {
    parts.backward.push_back({"compute", term("backward") + term("gradients"),
                              fmt::format("backward {}, gradients {}", TimeText(term("backward")),
                                          TimeText(term("gradients")))});
    parts.forward.push_back({"compute",
                             term("forward") + term("update") + term("checksum") + term("copies"),
                             fmt::format("forward {}, update {}, checksums {}, copies {}",
                                         TimeText(term("forward")), TimeText(term("update")),
                                         TimeText(term("checksum")), TimeText(term("copies")))});
  } else {
    parts.backward.push_back({"backward", term("backward"), ""});
    parts.forward.push_back({"forward", term("forward"), ""});
    parts.forward.push_back({"updates", term("update") + term("checksum"),
                             fmt::format("update {}, checksums {}", TimeText(term("update")),
                                         TimeText(term("checksum")))});
    parts.forward.push_back({"copies into HBM", term("copies"), ""});
  }
  parts.backward.push_back({"gradients to drives", term("spill"), ""});
  parts.forward.push_back({"drives", term("io"), ""});
  return parts;
}

std::vector<Advice> AdviceFor(const RunReport& report) {
  List list;
  OnFailure(report, &list);
  OnPinned(report, &list);
  OnWaits(report, &list);
  OnDrives(report, &list);
  OnSpeed(report, &list);
  return list;
}

}  // namespace sluice::tools
