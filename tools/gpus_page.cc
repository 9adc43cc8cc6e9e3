#include "tools/gpus_page.h"

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "core/config.h"
#include "fmt/format.h"
#include "tools/json_file.h"
#include "tools/output.h"

namespace sluice::tools {

namespace {

const char* Memory(Tier tier) {
  return tier == Tier::kHbm ? "HBM" : tier == Tier::kPinned ? "RAM" : "NVMe";
}

std::string ConfigText(const ZeroWay& way) {
  Json zero = {{"stage", way.stage}};
  if (way.states != Tier::kHbm) zero["offload_optimizer"]["device"] = OffloadDevice(way.states);
  if (way.params != Tier::kHbm) zero["offload_param"]["device"] = OffloadDevice(way.params);
  std::string text = "\"zero_optimization\": ";
  for (const char c : Text(zero)) {
    text += c;
    if (c == ':' || c == ',') text += ' ';
  }
  return text;
}

std::string Limit(const std::optional<Bytes>& limit, const std::string& from) {
  if (!limit || *limit == kNoLimit) return from;
  return fmt::format("{} ({}), {}", Decimal(*limit), FormatBytes(*limit), from);
}

std::string VerdictText(const ZeroVerdict& verdict) {
  const char* spills = verdict.spills ? ", spills" : "";
  switch (verdict.fit) {
    case ZeroFit::kFits:
      return fmt::format("yes{}", spills);
    case ZeroFit::kTight:
      return fmt::format("tight{}", spills);
    case ZeroFit::kTooLarge:
      return fmt::format("no: {}", Memory(verdict.tier));
    case ZeroFit::kUnknown:
      return fmt::format("? {}", Memory(verdict.tier));
  }
  return "";
}

void AddModel(const GpusReport& report, Page* page) {
  const ZeroModel& model = report.model;
  page->Section("Model");
  if (!report.described.empty()) page->Row("model", report.described);
  page->Row("parameters",
            fmt::format("P = {} ({}) in {} units; the largest has L = {}, the two largest T = {}",
                        model.parameters(), CountText(model.parameters()), model.units.size(),
                        model.largest_unit(), model.two_units()));
  const ZeroNeed& all = report.needs.front();
  std::string bytes;
  double sum = 0;
  for (const ZeroTerm& term : all.gpu_kept.terms) {
    const double each = static_cast<double>(term.cell.value()) / kCellElements;
    sum += each;
    bytes += fmt::format("{}{:g}", bytes.empty() ? "" : " + ", each);
  }
  page->Row("types", fmt::format("parameters {}, gradients {}, states {}: {} = {:g} bytes a "
                                 "parameter",
                                 model.types.param.name(), Name(model.types.grad),
                                 model.format->name(), bytes, sum));
  page->Section("Machine");
  page->Row("GPUs", fmt::format("N = {}, on {} host{}, g = {} on each", model.gpus, report.hosts(),
                                report.hosts() > 1 ? "s" : "", model.gpus_per_host));
  page->Row("HBM", Limit(report.machine.limits.hbm, report.machine.hbm));
  page->Row("RAM", Limit(report.machine.limits.ram, report.machine.ram));
  page->Row("NVMe", Limit(report.machine.limits.nvme, report.machine.nvme));
}

void AddNeeds(const GpusReport& report, Page* page) {
  const bool drives = report.drives > 1;
  const auto line = [drives](std::array<std::string, 9> c) {
    return fmt::format("{:<9}  {:<10} {:>8} {:>8} {:>8} {:>8} {:>8} {:>{}}   {}", c[0], c[1], c[2],
                       c[3], c[4], c[5], c[6], drives ? c[7] : "", drives ? 8 : 0, c[8]);
  };
  page->Section("Needed, in powers of 1000");
  page->Row("", line({"offloaded", "", "of each", "GPU", "", "of each", "host", "of a", ""}));
  page->Row("stage", line({"optimizer", "parameters", "kept", "moving", "exchange", "RAM", "NVMe",
                           "drive", "fits"}));
  bool any_spills = false;
  for (size_t i = 0; i < report.needs.size(); ++i) {
    const ZeroNeed& need = report.needs[i];
    const ZeroVerdict& verdict = report.verdicts[i];
    any_spills = any_spills || verdict.spills;
    const Bytes nvme = need.nvme.sum();
    page->Row(
        fmt::format("{}", need.way.stage),
        line({OffloadDevice(need.way.states), OffloadDevice(need.way.params),
              Decimal(need.gpu_kept.sum()), Decimal(need.gpu_moving.sum()),
              Decimal(need.gpu_exchange()), Decimal(need.ram.sum()), Decimal(nvme),
              Decimal((nvme + Bytes(report.drives - 1)) / report.drives), VerdictText(verdict)}));
  }
  if (any_spills)
    page->Row("", "spills: RAM can't hold the gradients, and NVMe has them beside the states");
}

// E, which is the same of most ways.
void AddExchange(const GpusReport& report, Page* page) {
  const ZeroNeed &plain = report.needs.front(), &most = report.needs.back();
  if (plain.exchange.terms.empty()) return;
  const auto text = [](const ZeroNeed& need) {
    return fmt::format("{} = {}", need.exchange.formula(), Decimal(need.exchange.sum()));
  };
  page->Row("E", fmt::format("what a rank's gradients pass through among ranks, in {}: {}",
                             Memory(plain.exchange_tier), text(plain)));
  page->Row("", fmt::format("with parameters on nvme{}: {}",
                            plain.exchange_tier == Tier::kHbm ? " or cpu" : "", text(most)));
}

void AddFormulas(const GpusReport& report, Page* page) {
  page->Section("Formulas, of bytes");
  const auto line = [](const std::string& states, const std::string& params,
                       const std::string& kept, const std::string& moving, const std::string& ram,
                       const std::string& nvme) {
    return fmt::format("{:<9}  {:<10}  {:<16}  {:<6}  {:<23}  {}", states, params, kept, moving,
                       ram, nvme);
  };
  page->Row("stage", line("optimizer", "parameters", "GPU: kept", "moving", "host: RAM", "NVMe"));
  const auto shown = [](const ZeroFigure& figure) {
    return figure.terms.empty() ? "-" : figure.formula();
  };
  for (const ZeroNeed& need : report.needs) {
    page->Row(
        fmt::format("{}", need.way.stage),
        line(OffloadDevice(need.way.states), OffloadDevice(need.way.params), shown(need.gpu_kept),
             shown(need.gpu_moving), shown(need.ram), shown(need.nvme)));
  }
  const auto [least, most] = std::ranges::minmax(report.needs, {}, &ZeroNeed::buffers);
  page->Row("B", fmt::format("what a rank moves things through, at least: {} to {}",
                             Decimal(least.buffers), Decimal(most.buffers)));
  page->Row("kept",
            "model states alone: parameters, gradients, and what the optimizer has of them");
  page->Row("moving", "what is gathered for compute, and gradients on their way: two units");
  AddExchange(report, page);
  page->Row("nvme", "with the optimizer there, gradients that RAM can't hold go there too");
}

void AddRecommended(const GpusReport& report, Page* page) {
  page->Section("Recommended");
  const ZeroNeed* take = report.recommended();
  if (take == nullptr) {
    page->Row("none", WhyRecommended(report));
    return;
  }
  const Bytes hbm = *report.machine.limits.hbm;
  const bool spills = report.verdicts[*report.best].spills;
  page->Row("take", WayText(take->way));
  page->Row("why", WhyRecommended(report));
  page->Row("GPU",
            fmt::format("{} of {}: leaves {} ({:.0f}%) to activations and PyTorch's workspace",
                        Decimal(take->gpu()), Decimal(hbm), Decimal(report.hbm_free()),
                        100.0 * static_cast<double>(report.hbm_free().value()) /
                            static_cast<double>(std::max(hbm, Bytes(1)).value())));
  const Bytes ram = spills ? take->ram_least.sum() : take->ram.sum();
  const Bytes nvme = spills ? take->nvme_most.sum() : take->nvme.sum();
  page->Row("host", fmt::format("{}{} of RAM{}{}", spills ? "at least " : "", Decimal(ram),
                                nvme > Bytes(0) ? ", " + Decimal(nvme) + " of NVMe" : "",
                                spills ? "; what more there is of RAM, gradients use" : ""));
  page->Row("config", ConfigText(take->way));
}

}  // namespace

std::string GpusPage(const GpusReport& report) {
  Page page;
  AddModel(report, &page);
  AddNeeds(report, &page);
  AddFormulas(report, &page);
  AddRecommended(report, &page);
  return page.Text();
}

}  // namespace sluice::tools
