#include "tools/replay_report.h"

#include <algorithm>

#include "core/config.h"
#include "fmt/format.h"
#include "tools/html.h"
#include "tools/output.h"

namespace sluice::tools {

namespace {

int64_t ParametersOf(const Recording& recording) {
  int64_t elements = 0;
  for (const ModelSpec::Tensor& tensor : recording.spec.tensors)
    elements = std::min(kElementsMax, elements + tensor.elements);
  return elements;
}

Json TiersJson(const Budgets& bytes) {
  const auto figure = [](Bytes of) { return of >= kNoLimit ? Json() : Json(of.value()); };
  return {
      {"hbm", figure(bytes.hbm)}, {"pinned", figure(bytes.pinned)}, {"nvme", figure(bytes.nvme)}};
}

Json RateJson(double rate) { return rate > 0 ? Json(rate) : Json(); }

Json OneJson(const NamedReplay& one) {
  Json waited;
  for (size_t w = 0; w < kWaits; ++w)
    waited[Name(static_cast<WaitedFor>(w))] = one.replay.waited_seconds[w];
  return {{"name", one.name},
          {"step_seconds", one.replay.step_seconds},
          {"own_seconds", one.replay.own_seconds},
          {"waited_seconds", std::move(waited)},
          {"floor_seconds", one.replay.floor.total},
          {"budgets_bytes", TiersJson(one.options.budgets)},
          {"planned_bytes", TiersJson(one.replay.planned)},
          {"nvme_read_bytes", one.replay.traffic.nvme_read.value()},
          {"nvme_write_bytes", one.replay.traffic.nvme_written.value()},
          {"to_hbm_bytes", one.replay.traffic.to_hbm.value()},
          {"nvme_bytes_per_second", RateJson(one.options.rates.nvme_bytes)},
          {"link_bytes_per_second", RateJson(one.options.rates.copy_bytes)},
          {"update_elements_per_second", RateJson(one.options.rates.update_elements)},
          {"scale", one.replay.scale}};
}

constexpr int kColumn = 22;

// A value of each replay, side by side.
template <typename F>
void AddRow(const char* label, const std::vector<NamedReplay>& replays, F&& value, Page* page) {
  std::string text;
  for (const NamedReplay& one : replays) text += fmt::format("{:>{}}", value(one), kColumn);
  page->Row(label, text);
}

// "7 MiB/16 MiB": what is taken of a budget.
std::string OfBudget(Bytes planned, Bytes budget) {
  return budget >= kNoLimit ? FormatBytes(planned)
                            : fmt::format("{}/{}", FormatBytes(planned), FormatBytes(budget));
}

// `TimeText` without what some terminals can't show.
std::string Seconds(double seconds) {
  const std::string text = TimeText(seconds);
  const size_t micro = text.find("µs");
  return micro == std::string::npos ? text : text.substr(0, micro) + "us";
}

std::string Rate(double rate) { return rate > 0 ? RateText(rate) : "no limit"; }

void AddWaits(const std::vector<NamedReplay>& replays, Page* page) {
  constexpr const char* kLabels[kWaits] = {"units", "updates", "gradients", "other ranks",
                                           "drives"};
  bool nothing = true;
  for (size_t w = 0; w < kWaits; ++w) {
    const bool any = std::ranges::any_of(
        replays, [w](const NamedReplay& one) { return one.replay.waited_seconds[w] > 0; });
    if (!any) continue;
    nothing = false;
    AddRow(
        kLabels[w], replays,
        [w](const NamedReplay& one) { return Seconds(one.replay.waited_seconds[w]); }, page);
  }
  if (nothing) page->Row("nothing", "");
}

}  // namespace

Json ReplayJson(const Recording& recording, const std::vector<NamedReplay>& replays) {
  Json json = {
      {"parameters", ParametersOf(recording)},
      {"units", recording.spec.units.size()},
      {"calls", recording.calls.size()},
      {"measured_step_seconds", recording.step_seconds ? Json(*recording.step_seconds) : Json()},
      {"replays", Json::array()}};
  for (const NamedReplay& one : replays) json["replays"].push_back(OneJson(one));
  return json;
}

std::string ReplayPage(const Recording& recording, const std::vector<NamedReplay>& replays) {
  Page page;
  page.Section("Recorded");
  page.Row("model", fmt::format("{} parameters in {} units", CountText(ParametersOf(recording)),
                                recording.spec.units.size()));
  page.Row("step", recording.step_seconds ? fmt::format("{} was measured, the median",
                                                        Seconds(*recording.step_seconds))
                                          : std::string("none was timed"));
  page.Section("Replayed");
  AddRow(
      "", replays, [](const NamedReplay& one) { return one.name; }, &page);
  AddRow(
      "step", replays, [](const NamedReplay& one) { return Seconds(one.replay.step_seconds); },
      &page);
  AddRow(
      "floor", replays, [](const NamedReplay& one) { return Seconds(one.replay.floor.total); },
      &page);
  AddRow(
      "program", replays, [](const NamedReplay& one) { return Seconds(one.replay.own_seconds); },
      &page);
  page.Section("Waited for, of the step");
  AddWaits(replays, &page);
  page.Section("With");
  const auto tier = [&](const char* label, Bytes Budgets::*of) {
    AddRow(
        label, replays,
        [of](const NamedReplay& one) {
          return OfBudget(one.replay.planned.*of, one.options.budgets.*of);
        },
        &page);
  };
  tier("hbm", &Budgets::hbm);
  tier("pinned", &Budgets::pinned);
  tier("nvme", &Budgets::nvme);
  AddRow(
      "drives", replays, [](const NamedReplay& one) { return Rate(one.options.rates.nvme_bytes); },
      &page);
  AddRow(
      "link", replays, [](const NamedReplay& one) { return Rate(one.options.rates.copy_bytes); },
      &page);
  return page.Text();
}

}  // namespace sluice::tools
